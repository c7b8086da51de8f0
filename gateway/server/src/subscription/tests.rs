//! The driver against a Kafka that is a pair of channels.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::time::SystemTime;

use sluice_core::{Assignment, Epoch, NextOffset, Open, Policy, SessionId, Settlements, TopicPartition, Window};
use sluice_kafka::{FetchGate, KafkaCommand, KafkaEvent, ResetCause};
use sluice_proto::v1::DrainReason;
use sluice_proto::v1::consume_response::Response;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tonic::Code;

use super::{KafkaPort, Membership, Request, SessionRegistry, Settings, start};
use crate::session::{ConsumeStream, Input, Link, Outgoing, Permit, Profile, channel};

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
    (KafkaPort { send, gate: FetchGate::new(1 << 20), events, write: Box::new(drop) }, tell, sent)
}

fn settings(leave_delay: Option<Duration>) -> Settings {
    Settings {
        name: "orders".into(),
        policy: Policy::default(),
        policy_hash: 0,
        session_timeout: Duration::from_secs(30),
        kafka_session_timeout: Duration::from_secs(10),
        revoke_grace: Duration::from_secs(5),
        leave_delay,
        drain_grace: Duration::from_secs(30),
        stuck_after_ms: 300_000,
        dead_letters: None,
        news: None,
        group_news: None,
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

fn partition() -> TopicPartition {
    TopicPartition::new("orders", 0)
}

fn assigned(epoch: i64) -> KafkaEvent {
    KafkaEvent::Assigned(Assignment {
        partition: partition(),
        epoch: Epoch(epoch),
        next: NextOffset(0),
        metadata: None,
        topic_hash: 0,
        commit_now: true,
    })
}

fn committed(epoch: i64) -> KafkaEvent {
    KafkaEvent::Committed { partition: partition(), epoch: Epoch(epoch), result: Ok(NextOffset(0)) }
}

fn stream() -> (Arc<Link>, ConsumeStream) {
    let permit = Permit::take(&Arc::new(AtomicUsize::new(0)), 1).unwrap();
    let (frames, transport, stream) = channel(permit);
    let (connected_at, subscribed_at) = (SystemTime::now(), super::clock::now());
    let profile = Profile { peer: "test".to_owned(), labels: HashMap::new(), connected_at, subscribed_at, revision: 1 };
    (Link::new(frames, transport, Window::default(), profile), stream)
}

#[tokio::test]
async fn what_came_before_left_is_of_the_past_however_late_it_comes() {
    let (port, tell, _) = port();
    let handle = start(settings(None), port, Arc::new(SessionRegistry::new()), Arc::new(Notify::new()));
    handle.view().await.unwrap();
    tell.send(assigned(1)).unwrap();
    while handle.view().await.unwrap().partitions.is_empty() {}
    // A leave that was given up, and is answered after all.
    tell.send(KafkaEvent::Left).unwrap();
    while !handle.view().await.unwrap().partitions.is_empty() {}
    assert_eq!(handle.state().membership, Membership::Joined);
}

#[tokio::test]
async fn a_partition_that_is_lost_and_given_again_in_one_turn_is_drained_before_it_is_handed_over() {
    let (port, tell, sent) = port();
    let handle = start(settings(None), port, Arc::new(SessionRegistry::new()), Arc::new(Notify::new()));
    let grace = Duration::from_secs(60);
    let revoking = |epoch| KafkaEvent::Revoking { partitions: vec![(partition(), Epoch(epoch))], grace };
    let count = |word: &str| sent.lock().unwrap().iter().filter(|it| it.starts_with(word)).count();
    handle.view().await.unwrap();
    tell.send(assigned(1)).unwrap();
    while count("Commit") < 1 {
        handle.view().await.unwrap();
    }
    for event in [revoking(1), committed(1), KafkaEvent::Lost(vec![partition()]), assigned(2), revoking(2)] {
        tell.send(event).unwrap();
    }
    while count("Commit") < 2 {
        handle.view().await.unwrap();
    }
    assert!(count("Revoked") <= 1, "the second revoke waits for its commit: {:?}", sent.lock().unwrap());
    tell.send(committed(2)).unwrap();
    while !handle.view().await.unwrap().partitions.is_empty() {}
    let last = sent.lock().unwrap().last().cloned().unwrap();
    assert!(last.starts_with("Revoked") && last.contains("Epoch(2)"), "it names the epoch that was asked for: {last}");
}

/// Begins a seek in the partition, in epoch 2.
async fn sought() -> (Arc<super::Handle>, mpsc::UnboundedSender<KafkaEvent>, Sent, JoinHandle<Vec<TopicPartition>>) {
    let (port, tell, sent) = port();
    let handle = start(settings(None), port, Arc::new(SessionRegistry::new()), Arc::new(Notify::new()));
    handle.view().await.unwrap();
    tell.send(assigned(1)).unwrap();
    tell.send(committed(1)).unwrap();
    while handle.view().await.unwrap().partitions.is_empty() {}
    let asked = handle.clone();
    let seek = tokio::spawn(async move { asked.seek(vec![(partition(), NextOffset(0))]).await.unwrap() });
    while !sent.lock().unwrap().iter().any(|it| it.starts_with("Seek(Begin") && it.contains("Epoch(1)")) {
        handle.view().await.unwrap();
        tokio::task::yield_now().await;
    }
    tell.send(KafkaEvent::Reset { partition: partition(), cause: ResetCause::Seek }).unwrap();
    tell.send(assigned(2)).unwrap();
    while !sent.lock().unwrap().iter().any(|it| it.starts_with("Commit") && it.contains("Epoch(2)")) {
        handle.view().await.unwrap();
    }
    (handle, tell, sent, seek)
}

#[tokio::test]
async fn a_seek_is_answered_and_fetched_from_when_its_position_is_committed_and_not_before() {
    let (handle, tell, sent, seek) = sought().await;
    let is_fetched = || sent.lock().unwrap().iter().any(|it| it.starts_with("Unhold"));
    // What was committed in the epoch before says nothing.
    tell.send(committed(1)).unwrap();
    handle.view().await.unwrap();
    assert!(!is_fetched() && !seek.is_finished(), "{:?}", sent.lock().unwrap());
    assert_eq!(handle.seek(vec![(partition(), NextOffset(0))]).await.unwrap(), [], "one at a time");
    tell.send(committed(2)).unwrap();
    assert_eq!(seek.await.unwrap(), [partition()]);
    assert!(is_fetched());
    assert_eq!(handle.seek(vec![(TopicPartition::new("orders", 1), NextOffset(0))]).await.unwrap(), [], "not ours");
}

#[tokio::test]
async fn a_seek_in_a_partition_that_is_lost_meanwhile_is_not_done() {
    let (_handle, tell, _, seek) = sought().await;
    tell.send(KafkaEvent::Lost(vec![partition()])).unwrap();
    assert_eq!(seek.await.unwrap(), []);
}

#[tokio::test]
async fn a_driver_that_panics_ends_its_streams_and_says_that_it_stopped() {
    let (mut port, _tell, _) = port();
    port.send = Box::new(|command| panic!("a bug: {command:?}"));
    let delay = Some(Duration::from_secs(10));
    let changed = Arc::new(Notify::new());
    let sessions = Arc::new(SessionRegistry::new());
    let handle = start(settings(delay), port, sessions.clone(), changed.clone());
    let (link, mut frames) = stream();
    handle.send(Request::Open { link, open: Open::default() });
    let mut last = None;
    while let Some(frame) = frames.next().await {
        last = Some(frame);
    }
    assert_eq!(last.unwrap().unwrap_err().code(), Code::Unavailable);
    assert!(handle.state().ended && sessions.is_empty());
    let (link, mut refused) = stream();
    handle.send(Request::Open { link, open: Open::default() });
    assert_eq!(refused.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn an_answer_goes_to_the_stream_that_asked_and_not_to_the_one_that_supersedes_it() {
    let (port, _tell, _) = port();
    let delay = Some(Duration::from_secs(10));
    let handle = start(settings(delay), port, Arc::new(SessionRegistry::new()), Arc::new(Notify::new()));
    let open = || Open { consumer_id: Some("a".to_owned()), ..Open::default() };
    let ((old, mut to_old), (new, mut to_new)) = (stream(), stream());
    // All in one turn of the driver.
    handle.send(Request::Open { link: old.clone(), open: open() });
    old.push(Input::Settle(Settlements { request_id: 5, ..Settlements::default() })).unwrap();
    handle.send(Request::Input(old));
    handle.send(Request::Open { link: new, open: open() });
    handle.shutdown(Duration::from_secs(5)).await;
    let settled = |frame: Result<Outgoing, _>| {
        let Ok(Outgoing::Message(message)) = frame else { return false };
        matches!(message.response, Some(Response::Settled(_)))
    };
    let (mut asked, mut other) = (0, 0);
    while let Some(frame) = to_old.next().await {
        asked += usize::from(settled(frame));
    }
    while let Some(frame) = to_new.next().await {
        other += usize::from(settled(frame));
    }
    assert_eq!((asked, other), (1, 0));
}

#[tokio::test]
async fn a_stream_is_told_to_drain_once_though_it_has_its_age_when_the_node_shuts_down() {
    let (port, _tell, _) = port();
    let delay = Some(Duration::from_secs(10));
    let handle = start(settings(delay), port, Arc::new(SessionRegistry::new()), Arc::new(Notify::new()));
    let ((aged, mut to_aged), (young, mut to_young)) = (stream(), stream());
    for link in [&aged, &young] {
        handle.send(Request::Open { link: link.clone(), open: Open::default() });
    }
    handle.send(Request::Drain(aged));
    handle.shutdown(Duration::from_secs(5)).await;
    let reason = |frame: Result<Outgoing, _>| match frame {
        Ok(Outgoing::Message(message)) => match message.response {
            Some(Response::Drain(drain)) => Some(drain.reason()),
            _ => None,
        },
        _ => None,
    };
    let (mut of_aged, mut of_young) = (Vec::new(), Vec::new());
    while let Some(frame) = to_aged.next().await {
        of_aged.extend(reason(frame));
    }
    while let Some(frame) = to_young.next().await {
        of_young.extend(reason(frame));
    }
    assert_eq!((of_aged, of_young), (vec![DrainReason::MaxAge], vec![DrainReason::Shutdown]));
}

#[tokio::test]
async fn a_kafka_thread_that_panics_ends_the_streams_and_the_subscription() {
    let (port, tell, _) = port();
    let delay = Some(Duration::from_secs(10));
    let handle = start(settings(delay), port, Arc::new(SessionRegistry::new()), Arc::new(Notify::new()));
    let (link, mut frames) = stream();
    handle.send(Request::Open { link, open: Open::default() });
    assert!(frames.next().await.unwrap().is_ok());
    tell.send(KafkaEvent::Panicked("kafka-fetch")).unwrap();
    let mut last = None;
    while let Some(frame) = frames.next().await {
        last = Some(frame);
    }
    assert_eq!(last.unwrap().unwrap_err().code(), Code::Unavailable);
    tell.closed().await;
    while !handle.state().ended {
        tokio::task::yield_now().await;
    }
}
