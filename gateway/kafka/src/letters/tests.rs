//! The writer against librdkafka's broker in memory.

use std::sync::mpsc;

use bytes::Bytes;

use super::*;
use crate::mock::MockBroker;

fn writer(brokers: &str, timeout: Duration) -> LetterWriter {
    let config = WriterConfig {
        brokers: brokers.to_owned(),
        client_id: "test".to_owned(),
        properties: BTreeMap::from([
            ("fetch.wait.max.ms".to_owned(), "10".to_owned()),
            ("isolation.level".to_owned(), "read_committed".to_owned()),
        ]),
        timeout,
        queue_bytes: 1 << 20,
    };
    LetterWriter::start(config).expect("a writer")
}

type Ends = mpsc::Receiver<Result<Written, WriteError>>;

fn write(writer: &LetterWriter, topic: &str, value: &[u8]) -> Ends {
    let (sender, ends) = mpsc::channel();
    let value = Some(Bytes::copy_from_slice(value));
    writer.write(Write {
        topic: topic.to_owned(),
        partition: Some(0),
        record: Record { offset: 0, timestamp_ms: 1, key: None, value, headers: None },
        added: Vec::new(),
        done: Done::new(move |result| drop(sender.send(result))),
    });
    ends
}

const SOON: Duration = Duration::from_secs(30);

#[test]
fn the_broker_in_memory_acknowledges_idempotent_writes() {
    let broker = MockBroker::start(&[("dead", 1)]).expect("a broker");
    let writer = writer(broker.bootstrap_servers(), SOON);
    for offset in 0..3 {
        let written = write(&writer, "dead", b"x").recv_timeout(SOON).expect("an answer");
        assert_eq!(written, Ok((0, offset)));
    }
}

#[test]
fn a_broker_that_is_away_is_a_failure_within_the_timeout() {
    // Port 1 of this machine answers nobody.
    let writer = writer("127.0.0.1:1", Duration::from_millis(300));
    let error = write(&writer, "dead", b"x").recv_timeout(SOON).expect("an answer").expect_err("no broker");
    assert_eq!(error.kind, LetterError::Failed);
    assert!(error.words.contains("dead"), "{error}");
}

#[test]
fn what_is_larger_than_the_queue_is_too_large_and_what_does_not_fit_now_failed() {
    let writer = writer("127.0.0.1:1", SOON);
    let end = write(&writer, "dead", &vec![0; 2 << 20]).recv_timeout(SOON).expect("an answer");
    assert_eq!(end.expect_err("too large").kind, LetterError::TooLarge);
    let waiting = write(&writer, "dead", &vec![0; 700 << 10]);
    let end = write(&writer, "dead", &vec![0; 700 << 10]).recv_timeout(SOON).expect("an answer");
    assert_eq!(end.expect_err("the queue is full").kind, LetterError::Failed);
    assert!(waiting.try_recv().is_err(), "on its way");
}

#[test]
fn a_writer_that_is_dropped_answers_what_it_had_as_failed_and_does_not_wait() {
    let writer = writer("127.0.0.1:1", Duration::from_secs(3_600));
    let waiting = write(&writer, "dead", b"x");
    drop(writer);
    let end = waiting.recv_timeout(SOON).expect("an answer");
    assert_eq!(end.expect_err("not written").kind, LetterError::Failed);
}

#[test]
fn a_property_that_librdkafka_refuses_is_an_error_at_once() {
    let config = WriterConfig {
        brokers: "127.0.0.1:1".to_owned(),
        client_id: "test".to_owned(),
        properties: BTreeMap::from([("no.such".to_owned(), "1".to_owned())]),
        timeout: SOON,
        queue_bytes: 1 << 20,
    };
    assert!(matches!(LetterWriter::start(config), Err(Error::Config(_))));
}
