//! Records out of librdkafka's buffers: one copy of keys, values and headers, into runs.

use std::sync::Arc;

use sluice_core::{Run, RunBuilder};

use crate::ffi::{MessageView, Neighbours};

/// What a record costs beside its bytes.
const RECORD_OVERHEAD_BYTES: usize = 96;

/// Copies records of one partition; also tells what they count.
pub(crate) fn copy(mut messages: Neighbours<'_>) -> (Vec<Arc<Run>>, usize) {
    let (mut runs, mut bytes) = (Vec::new(), 0);
    while messages.len() > 0 {
        let run = next_run(messages);
        messages = messages.skip(run.len());
        bytes += run.bytes() + run.len() * RECORD_OVERHEAD_BYTES;
        runs.push(Arc::new(run));
    }
    (runs, bytes)
}

/// A run of the first of these. Its arena's size is known before it is made, but for headers, which are rare and dear to
/// look at: it pins what it counts and no more.
fn next_run(messages: Neighbours<'_>) -> Run {
    let (count, size) = RunBuilder::share(messages.iter().map(|message| message.bytes()));
    let mut run = RunBuilder::with_capacity(count, size);
    for message in messages.iter().take(count) {
        let headers = message.headers();
        let size = message.bytes() + headers.iter().map(header_bytes).sum::<usize>();
        if !run.takes(message.offset(), size) {
            break;
        }
        push(&mut run, message, &headers);
    }
    run.build()
}

type Header<'a> = (&'a str, Option<&'a [u8]>);

fn header_bytes((name, value): &Header<'_>) -> usize {
    name.len() + value.map_or(0, <[u8]>::len)
}

fn push(run: &mut RunBuilder, message: MessageView<'_>, headers: &[Header<'_>]) {
    run.push(message.offset(), message.timestamp_ms(), message.key(), message.value());
    headers.iter().for_each(|(name, value)| run.header(name, *value));
}
