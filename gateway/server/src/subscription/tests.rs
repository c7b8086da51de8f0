//! The driver against a Kafka that is a pair of channels.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_core::{Policy, SessionId, Settlements};
use sluice_kafka::{FetchGate, KafkaCommand, KafkaEvent};
use tokio::sync::{Notify, mpsc};

use super::{KafkaPort, Membership, SessionRegistry, Settings, start};

type Sent = Arc<Mutex<Vec<String>>>;

fn port() -> (KafkaPort, mpsc::UnboundedSender<KafkaEvent>, Sent) {
    let (tell, events) = mpsc::unbounded_channel();
    let sent = Sent::default();
    let (log, left) = (sent.clone(), tell.clone());
    let send = Box::new(move |command: KafkaCommand| {
        log.lock().unwrap().push(format!("{command:?}"));
        if matches!(command, KafkaCommand::Leave(_) | KafkaCommand::Shutdown(_)) {
            let _ = left.send(KafkaEvent::Left);
        }
    });
    (KafkaPort { send, gate: FetchGate::new(1 << 20), events }, tell, sent)
}

fn settings(leave_delay: Option<Duration>) -> Settings {
    Settings {
        name: "orders".into(),
        policy: Policy::default(),
        session_timeout: Duration::from_secs(30),
        kafka_session_timeout: Duration::from_secs(10),
        revoke_grace: Duration::from_secs(5),
        leave_delay,
        drain_grace: Duration::from_secs(30),
    }
}

#[tokio::test]
async fn a_member_from_the_start_joins_at_once_and_leaves_at_the_end() {
    let (port, _tell, sent) = port();
    let handle = start(settings(None), port, Arc::new(SessionRegistry::new()), Arc::new(Notify::new()));
    handle.view().await.unwrap();
    handle.shutdown(Duration::from_secs(5)).await;
    let sent = sent.lock().unwrap();
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert_eq!(sent[0], "Join");
    assert!(sent[1].starts_with("Shutdown"), "{sent:?}");
    assert!(handle.state().ended);
}

#[tokio::test]
async fn without_sessions_nothing_is_joined_and_an_unknown_session_holds_nothing() {
    let (port, _tell, sent) = port();
    let delay = Some(Duration::from_secs(10));
    let handle = start(settings(delay), port, Arc::new(SessionRegistry::new()), Arc::new(Notify::new()));
    let rejections = handle.settle(SessionId(7), Settlements::default()).await.unwrap();
    assert!(rejections.is_empty());
    assert_eq!(handle.state().membership, Membership::Idle);
    assert!(sent.lock().unwrap().is_empty());
}
