//! Offsets of many partitions in one question.
//!
//! A question waits behind the fetch that its broker holds open, for up to `fetch.wait.max.ms`: one partition after
//! another, a hundred would take a minute.

use std::collections::HashMap;
use std::time::{Duration, Instant, UNIX_EPOCH};

use sluice_core::TopicPartition;

use crate::ffi::{Code, Handle, List, OK};
use crate::io::Start;

/// What was asked of each partition.
pub(super) type Found<T> = HashMap<TopicPartition, Result<T, Code>>;

/// How long answers are waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For one.
    pub(super) each: Duration,
    /// When each has to be asked alone, no further one is after this.
    pub(super) all: Duration,
}

/// Kafka's own numbers, in the place of a time: the log's first offset, and its end.
const LOG_START: i64 = -2;
const LOG_END: i64 = -1;
/// The answer to a time that no record has.
const NO_RECORD: i64 = -1;

/// Where each of these begins by this policy.
pub(super) fn starts(handle: &Handle, of: &[TopicPartition], start: Start, patience: Patience) -> Found<i64> {
    let time = match start {
        Start::Earliest => return offsets(handle, of, LOG_START, patience),
        Start::Latest => return offsets(handle, of, LOG_END, patience),
        Start::Time(time) => time.duration_since(UNIX_EPOCH).unwrap_or_default(),
    };
    let mut found = offsets(handle, of, i64::try_from(time.as_millis()).unwrap_or(i64::MAX), patience);
    let past_the_last = found.iter().filter(|(_, offset)| **offset == Ok(NO_RECORD));
    let past_the_last: Vec<_> = past_the_last.map(|(partition, _)| partition.clone()).collect();
    found.extend(offsets(handle, &past_the_last, LOG_END, patience));
    found
}

/// Log start and log end of each: the last stable offset for a read_committed client.
pub(super) fn watermarks(handle: &Handle, of: &[TopicPartition], patience: Patience) -> Found<(i64, i64)> {
    // Side by side: one after the other each would wait behind a fetch of its own.
    let (low, high) = std::thread::scope(|scope| {
        let low = scope.spawn(|| offsets(handle, of, LOG_START, patience));
        let high = offsets(handle, of, LOG_END, patience);
        (low.join(), high)
    });
    let low = low.unwrap_or_else(|_panicked| failed(of, Code::RD_KAFKA_RESP_ERR__FAIL));
    let both = |(partition, high): (TopicPartition, Result<i64, Code>)| {
        let low = low.get(&partition).copied().unwrap_or(Err(Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION));
        (partition, high.and_then(|high| Ok((low?, high))))
    };
    high.into_iter().map(both).collect()
}

fn offsets(handle: &Handle, of: &[TopicPartition], at: i64, patience: Patience) -> Found<i64> {
    match ask(handle, of, at, patience.each) {
        Ok(found) => found,
        // One without a leader fails them all: each alone, so that the others have their answer.
        Err(code) if of.len() > 1 => {
            let began = Instant::now();
            let alone = |one: &TopicPartition| {
                let one = std::slice::from_ref(one);
                let patient = began.elapsed() < patience.all;
                let answer = if patient { ask(handle, one, at, patience.each) } else { Err(code) };
                answer.unwrap_or_else(|code| failed(one, code))
            };
            of.iter().flat_map(alone).collect()
        }
        Err(code) => failed(of, code),
    }
}

fn failed(of: &[TopicPartition], code: Code) -> Found<i64> {
    of.iter().map(|partition| (partition.clone(), Err(code))).collect()
}

fn ask(handle: &Handle, of: &[TopicPartition], at: i64, within: Duration) -> Result<Found<i64>, Code> {
    if of.is_empty() {
        return Ok(Found::new());
    }
    let mut list = List::new();
    for partition in of {
        list.add(&partition.topic, partition.partition, at);
    }
    let results = handle.offsets_for_times(&list, within)?.into_iter();
    Ok(results
        .map(|result| {
            let offset = match result.code {
                // What is still there is the question itself: it was not answered.
                OK if at < 0 && result.offset < 0 => Err(Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION),
                OK => Ok(result.offset),
                code => Err(code),
            };
            (result.partition, offset)
        })
        .collect())
}
