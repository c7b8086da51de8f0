//! The thread's rules, without a broker and without a handle.

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

fn member() -> (Member, UnboundedReceiver<KafkaEvent>) {
    let (events, told) = unbounded_channel();
    let config = Arc::new(crate::config::of_nobody());
    let (epochs, silence) = (Arc::new(Epochs::default()), Arc::new(Silence::default()));
    (Member::new(&config, &Mailbox::new(), &Mailbox::new(), &Mailbox::new(), &epochs, &silence, events), told)
}

#[test]
fn a_commit_waits_for_the_replies_to_those_of_earlier_epochs() {
    let (mut member, mut told) = member();
    let (partition, other) = (TopicPartition::new("t", 0), TopicPartition::new("t", 1));
    let mut refused = |member: &mut Member, partition: &TopicPartition| {
        member.commit(partition.clone(), Epoch(2), NextOffset(7), "");
        match told.try_recv() {
            Ok(KafkaEvent::Committed { epoch: Epoch(2), result: Err(error), .. }) => error,
            told => panic!("{told:?}"),
        }
    };
    for partition in [&partition, &other] {
        member.owned.insert(partition.clone());
        member.epochs.begin(partition, Epoch(2));
    }
    let earlier = |given_up| InFlight {
        partition: partition.clone(),
        epoch: Epoch(1),
        offset: NextOffset(5),
        since: Instant::now(),
        given_up,
    };
    // Also when the driver was told that it failed: it may still be carried out, behind this one.
    for given_up in [false, true] {
        member.in_flight.insert(1, earlier(given_up));
        assert_eq!(refused(&mut member, &partition), CommitError::Retriable);
    }
    // Another partition's is nothing to it: then only the handle is missing.
    assert_eq!(refused(&mut member, &other), CommitError::NotMember);
    member.replied(1, OK, &[]);
    assert_eq!(refused(&mut member, &partition), CommitError::NotMember);
}

#[test]
fn a_member_by_kip_848_that_no_broker_answers_for_a_session_is_cut_off_without_any_commit() {
    let (mut member, _told) = member();
    let timeout = Duration::from_secs(45);
    let mut config = (*member.config).clone();
    config.protocol = Protocol::Consumer;
    member.config = Arc::new(config);
    let long_ago = Instant::now().checked_sub(timeout).expect("the machine has run for a minute");
    member.silence.note(false, long_ago);
    assert!(!member.is_cut_off(), "it has nothing to lose");
    member.owned.insert(TopicPartition::new("t", 0));
    assert!(member.is_cut_off());
    member.silence.note(false, Instant::now());
    assert!(member.is_cut_off(), "since it began");
    member.silence.note(true, Instant::now());
    member.silence.note(false, Instant::now());
    assert!(!member.is_cut_off());
}
