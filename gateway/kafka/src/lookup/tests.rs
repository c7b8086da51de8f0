//! What the thread makes of words that cross each other, without a broker.

use tokio::sync::mpsc::unbounded_channel;

use super::*;
use crate::ffi::Purpose;
use crate::io::SeekCommand;

#[test]
fn a_seek_makes_what_was_to_be_found_out_about_the_position_void() {
    let config = Arc::new(crate::config::of_nobody());
    let handle = Arc::new(Handle::new(Purpose::Fetch, &config.properties_for(Purpose::Fetch)).expect("a client"));
    let fetch = Mailbox::new();
    let mut lookup =
        Lookup::new(&config, handle, &Mailbox::new(), &fetch, &Arc::default(), unbounded_channel().0, None);
    let (sought, other, token) = (TopicPartition::new("t", 0), TopicPartition::new("t", 1), Token(1));
    let now = Instant::now();
    let active = || Active { token, acknowledged: Some(10), read_back_at: now, watermarks_at: now };
    for partition in [&sought, &other] {
        lookup.active.insert(partition.clone(), active());
        let (partition, next) = (partition.clone(), NextOffset(10));
        lookup.handle(LookupCommand::OutOfRange { partition, token, epoch: Epoch(1), next });
    }
    lookup.handle(LookupCommand::Seek(SeekCommand::Begin(sought.clone(), Epoch(1), NextOffset(3))));
    let left: Vec<_> = lookup.out_of_range.iter().map(|it| it.partition.clone()).collect();
    assert_eq!(left, [other]);
    assert_eq!(lookup.active[&sought].acknowledged, None, "a lower commit is no rewind now");
    match fetch.take() {
        Some(FetchCommand::Decided(Token(1), partition, Decision::Seek(Epoch(1), assignment))) => {
            assert_eq!((partition, assignment.next, assignment.commit_now), (sought, NextOffset(3), true));
        }
        other => panic!("{other:?}"),
    }
    assert!(fetch.take().is_none());
}
