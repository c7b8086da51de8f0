//! What the thread makes of words that cross each other, without a broker.

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::ffi::Purpose;

fn fetch() -> (Fetch, UnboundedReceiver<KafkaEvent>, Arc<Mailbox<LookupCommand>>) {
    let (events, told) = unbounded_channel();
    let properties = crate::config::of_nobody().properties_for(Purpose::Fetch);
    let handle = Arc::new(Handle::new(Purpose::Fetch, &properties).expect("a client"));
    let lookup = Mailbox::new();
    let epochs = Arc::new(Epochs::default());
    let fetch = Fetch::new(&handle, &FetchGate::new(1), &Mailbox::new(), &lookup, &epochs, events);
    (fetch.expect("a queue"), told, lookup)
}

fn assignment(epoch: i64, next: i64) -> Assignment {
    Assignment {
        partition: TopicPartition::new("t", 0),
        epoch: Epoch(epoch),
        next: NextOffset(next),
        metadata: None,
        topic_hash: 0,
        commit_now: true,
    }
}

#[test]
fn a_seek_is_not_undone_by_an_older_verdict_about_the_position() {
    let (mut fetch, mut told, lookup) = fetch();
    let (partition, token) = (TopicPartition::new("t", 0), Token(1));
    fetch.handle(FetchCommand::Expect(partition.clone(), token));
    fetch.handle(FetchCommand::Begin(token, assignment(1, 10)));
    assert!(matches!(told.try_recv(), Ok(KafkaEvent::Assigned(first)) if first == assignment(1, 10)));
    fetch.out_of_range(&partition);
    assert!(matches!(lookup.take(), Some(LookupCommand::OutOfRange { epoch: Epoch(1), .. })));
    fetch.handle(FetchCommand::Decided(token, partition.clone(), Decision::Seek(Epoch(1), assignment(2, 3))));
    assert!(matches!(told.try_recv(), Ok(KafkaEvent::Reset { cause: ResetCause::Seek, .. })));
    assert!(matches!(told.try_recv(), Ok(KafkaEvent::Assigned(sought)) if sought == assignment(2, 3)));
    let verdicts = [
        Decision::Reset(ResetCause::LogTruncated, assignment(3, 99)),
        Decision::LostToRetention(NextOffset(50)),
        Decision::Continue,
        // And a seek of the epoch that is over.
        Decision::Seek(Epoch(1), assignment(4, 77)),
    ];
    for verdict in verdicts {
        let words = format!("{verdict:?}");
        fetch.handle(FetchCommand::Decided(token, partition.clone(), verdict));
        let state = &fetch.partitions[&partition];
        assert_eq!((state.epoch, state.next, state.phase), (Epoch(2), 3, Phase::Held), "{words}");
        assert!(told.try_recv().is_err(), "{words}");
    }
}

#[test]
fn a_verdict_about_a_position_that_still_stands_is_carried_out() {
    let (mut fetch, mut told, _) = fetch();
    let (partition, token) = (TopicPartition::new("t", 0), Token(1));
    fetch.handle(FetchCommand::Expect(partition.clone(), token));
    fetch.handle(FetchCommand::Begin(token, assignment(1, 10)));
    fetch.out_of_range(&partition);
    let verdict = Decision::Reset(ResetCause::LogTruncated, assignment(2, 5));
    fetch.handle(FetchCommand::Decided(token, partition.clone(), verdict));
    let told: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
    assert!(matches!(told[1..], [KafkaEvent::Reset { cause: ResetCause::LogTruncated, .. }, KafkaEvent::Assigned(_)]));
    let state = &fetch.partitions[&partition];
    assert_eq!((state.epoch, state.next, state.phase), (Epoch(2), 5, Phase::Fetching));
}
