//! The thread's rules, without a broker and without a handle.

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

fn member() -> (Member, UnboundedReceiver<KafkaEvent>) {
    let (events, told) = unbounded_channel();
    let config = Arc::new(crate::config::of_nobody());
    let epochs = Arc::new(Epochs::default());
    (Member::new(&config, &Mailbox::new(), &Mailbox::new(), &Mailbox::new(), &epochs, events), told)
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
