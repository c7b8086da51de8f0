//! Frames onto the wire. A delivery is written from the engine's batches straight into the transport's buffer, byte for byte
//! as prost writes `v1::Delivery`, but in one pass, with no message in between and with its room known beforehand.

use bytes::{BufMut, Bytes};
use sluice_core::{Batch, Dealt};
use sluice_proto::v1::{ConsumeRequest, ConsumeResponse};
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// What the transport takes.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Records.
    Delivery { sequence: u64, batches: Vec<Batch> },
    /// Records of another node: batches as they came from it.
    Relayed { sequence: u64, batches: Vec<Bytes> },
    /// Anything else.
    Message(Box<ConsumeResponse>),
}

/// The codec of `Consume`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FrameCodec;

#[derive(Debug, Default)]
pub(crate) struct FrameEncoder(ProstEncoder<ConsumeResponse>);

/// Numbers of fields in consumer.proto.
pub(super) mod field {
    pub(in crate::session) const RESPONSE_DELIVERY: u8 = 2;
    pub(in crate::session) const DELIVERY_SEQUENCE: u8 = 1;
    pub(in crate::session) const DELIVERY_BATCHES: u8 = 2;
    pub(in crate::session) const BATCH_TOPIC: u8 = 1;
    pub(in crate::session) const BATCH_PARTITION: u8 = 2;
    pub(in crate::session) const BATCH_EPOCH: u8 = 3;
    pub(in crate::session) const BATCH_RECORDS: u8 = 4;
    pub(in crate::session) const RECORD_OFFSET: u8 = 1;
    pub(in crate::session) const RECORD_TIMESTAMP: u8 = 2;
    pub(in crate::session) const RECORD_KEY: u8 = 3;
    pub(in crate::session) const RECORD_VALUE: u8 = 4;
    pub(in crate::session) const RECORD_HEADERS: u8 = 5;
    pub(in crate::session) const RECORD_ATTEMPTS: u8 = 15;
    pub(in crate::session) const HEADER_KEY: u8 = 1;
    pub(in crate::session) const HEADER_VALUE: u8 = 2;
}

/// Tag, length and the fixed fields of a record, at their longest: 6 and 2 × 11 bytes.
const RECORD_HEAD_BYTES_MAX: usize = 28;
/// A key of at most this is put together with what stands before and after it.
const SHORT_KEY_BYTES_MAX: usize = 64;
/// Tag and length of key and value, at their longest.
const LENGTHS_BYTES_MAX: usize = 12;
const HEAD_BYTES_MAX: usize = RECORD_HEAD_BYTES_MAX + SHORT_KEY_BYTES_MAX + LENGTHS_BYTES_MAX;

// === impl FrameCodec, FrameEncoder ===

impl Codec for FrameCodec {
    type Encode = Outgoing;
    type Decode = ConsumeRequest;
    type Encoder = FrameEncoder;
    type Decoder = ProstDecoder<ConsumeRequest>;

    fn encoder(&mut self) -> Self::Encoder {
        FrameEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<ConsumeResponse, ConsumeRequest>::default().decoder()
    }
}

impl Encoder for FrameEncoder {
    type Item = Outgoing;
    type Error = Status;

    fn encode(&mut self, item: Outgoing, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match item {
            Outgoing::Delivery { sequence, batches } => {
                let sizes = Sizes::of(sequence, &batches);
                to.reserve(nested_len(sizes.delivery));
                write(sequence, &batches, &sizes, to);
            }
            Outgoing::Relayed { sequence, batches } => write_relayed(sequence, &batches, to),
            Outgoing::Message(message) => self.0.encode(*message, to)?,
        }
        crate::next::add_unknown(to);
        Ok(())
    }
}

/// A delivery as it goes to an edge: the bytes of a `ConsumeResponse`.
pub(crate) fn to_bytes(sequence: u64, batches: &[Batch]) -> Bytes {
    let sizes = Sizes::of(sequence, batches);
    let mut bytes = Vec::with_capacity(nested_len(sizes.delivery));
    write(sequence, batches, &sizes, &mut bytes);
    bytes.into()
}

// === sizes ===

/// Lengths of messages, without their own tags and lengths.
struct Sizes {
    delivery: usize,
    batches: Vec<usize>,
    /// Of all batches, one after another.
    records: Vec<usize>,
}

impl Sizes {
    fn of(sequence: u64, batches: &[Batch]) -> Self {
        let mut records = Vec::with_capacity(batches.iter().map(|batch| batch.records.len()).sum());
        let batches: Vec<usize> = batches.iter().map(|batch| batch_len(batch, &mut records)).collect();
        let delivery = number_len(sequence) + batches.iter().copied().map(nested_len).sum::<usize>();
        Self { delivery, batches, records }
    }
}

/// Also adds the length of each record.
fn batch_len(batch: &Batch, records: &mut Vec<usize>) -> usize {
    let mut len = text_len(&batch.partition.topic)
        + number_len(signed(batch.partition.partition.into()))
        + number_len(signed(batch.epoch.0));
    batch.records.iter().for_each(|dealt| {
        let record = record_len(&dealt);
        records.push(record);
        len += nested_len(record);
    });
    len
}

fn record_len(dealt: &Dealt<'_>) -> usize {
    let record = &dealt.record;
    let headers = record.headers.iter().map(|(name, value)| nested_len(header_len(name, value)));
    number_len(signed(record.offset))
        + number_len(signed(record.timestamp_ms))
        + optional_len(record.key)
        + optional_len(record.value)
        + headers.sum::<usize>()
        + number_len(dealt.attempts.into())
}

fn header_len(name: &str, value: Option<&[u8]>) -> usize {
    text_len(name) + optional_len(value)
}

fn optional_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(0, |bytes| nested_len(bytes.len()))
}

/// A string field; an empty one is left out.
fn text_len(text: &str) -> usize {
    if text.is_empty() { 0 } else { nested_len(text.len()) }
}

/// A number field; 0 is left out.
fn number_len(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + varint_len(number) }
}

/// A field of so many bytes.
fn nested_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// Seven bits a byte.
fn varint_len(number: u64) -> usize {
    let bits = 64 - (number | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// int32 and int64 stand on the wire as 64 bits of two's complement.
fn signed(number: i64) -> u64 {
    number.cast_unsigned()
}

// === writing ===

fn write(sequence: u64, batches: &[Batch], sizes: &Sizes, to: &mut impl BufMut) {
    nested(to, field::RESPONSE_DELIVERY, sizes.delivery);
    number(to, field::DELIVERY_SEQUENCE, sequence);
    let mut records = sizes.records.iter();
    for (batch, &len) in batches.iter().zip(&sizes.batches) {
        nested(to, field::DELIVERY_BATCHES, len);
        text(to, field::BATCH_TOPIC, &batch.partition.topic);
        number(to, field::BATCH_PARTITION, signed(batch.partition.partition.into()));
        number(to, field::BATCH_EPOCH, signed(batch.epoch.0));
        // Each has a length. Not by `zip`, which would ask for one record after another: ranges are walked through faster.
        batch.records.iter().for_each(|dealt| record(to, &dealt, records.next().copied().unwrap_or_default()));
    }
}

fn write_relayed(sequence: u64, batches: &[Bytes], to: &mut impl BufMut) {
    let len = number_len(sequence) + batches.iter().map(|batch| nested_len(batch.len())).sum::<usize>();
    nested(to, field::RESPONSE_DELIVERY, len);
    number(to, field::DELIVERY_SEQUENCE, sequence);
    for batch in batches {
        nested(to, field::DELIVERY_BATCHES, batch.len());
        to.put_slice(batch);
    }
}

fn record(to: &mut impl BufMut, dealt: &Dealt<'_>, len: usize) {
    let record = &dealt.record;
    // Put together first: each put into the transport's buffer looks for room anew.
    let mut head = [0; HEAD_BYTES_MAX];
    let mut rest = &mut head[..];
    nested(&mut rest, field::BATCH_RECORDS, len);
    number(&mut rest, field::RECORD_OFFSET, signed(record.offset));
    number(&mut rest, field::RECORD_TIMESTAMP, signed(record.timestamp_ms));
    if let Some(key) = record.key {
        nested(&mut rest, field::RECORD_KEY, key.len());
        if key.len() <= SHORT_KEY_BYTES_MAX {
            rest.put_slice(key);
        } else {
            let used = HEAD_BYTES_MAX - rest.len();
            to.put_slice(&head[..used]);
            to.put_slice(key);
            rest = &mut head[..];
        }
    }
    if let Some(value) = record.value {
        nested(&mut rest, field::RECORD_VALUE, value.len());
    }
    let used = HEAD_BYTES_MAX - rest.len();
    to.put_slice(&head[..used]);
    to.put_slice(record.value.unwrap_or_default());
    for (name, value) in record.headers.iter() {
        nested(to, field::RECORD_HEADERS, header_len(name, value));
        text(to, field::HEADER_KEY, name);
        optional(to, field::HEADER_VALUE, value);
    }
    number(to, field::RECORD_ATTEMPTS, dealt.attempts.into());
}

fn text(to: &mut impl BufMut, field: u8, text: &str) {
    if !text.is_empty() {
        optional(to, field, Some(text.as_bytes()));
    }
}

fn optional(to: &mut impl BufMut, field: u8, bytes: Option<&[u8]>) {
    if let Some(bytes) = bytes {
        nested(to, field, bytes.len());
        to.put_slice(bytes);
    }
}

fn number(to: &mut impl BufMut, field: u8, number: u64) {
    if number != 0 {
        to.put_u8(field << 3);
        varint(to, number);
    }
}

/// Tag and length of what follows.
fn nested(to: &mut impl BufMut, field: u8, len: usize) {
    const LENGTH_DELIMITED: u8 = 2;
    to.put_u8(field << 3 | LENGTH_DELIMITED);
    varint(to, len as u64);
}

fn varint(to: &mut impl BufMut, mut number: u64) {
    while number >= 0x80 {
        to.put_u8((number & 0x7F) as u8 | 0x80);
        number >>= 7;
    }
    to.put_u8(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::relayed;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use prost::Message as _;
    use sluice_core::{Epoch, Header, Record, TopicPartition};
    use sluice_proto::v1::{self, consume_response::Response};

    fn batch_of_prost(batch: &Batch) -> v1::Batch {
        v1::Batch {
            topic: batch.partition.topic.to_string(),
            partition: batch.partition.partition,
            epoch: batch.epoch.0,
            records: batch.records.iter().map(record_of_prost).collect(),
        }
    }

    fn record_of_prost(dealt: Dealt<'_>) -> v1::Record {
        let record = dealt.record.to_record();
        let header = |h: &Header| v1::Header { key: h.key.to_string(), value: h.value.clone() };
        v1::Record {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key,
            value: record.value,
            headers: record.headers.as_deref().unwrap_or_default().iter().map(header).collect(),
            origin: None,
            attempts: dealt.attempts,
        }
    }

    fn numbers() -> impl Strategy<Value = i64> {
        prop_oneof![Just(0), Just(-1), 0..300_i64, Just(i64::MIN), Just(i64::MAX), any::<i64>()]
    }

    fn bytes() -> impl Strategy<Value = Option<Bytes>> {
        option::of(vec(any::<u8>(), 0..300).prop_map(Bytes::from))
    }

    fn records() -> impl Strategy<Value = (Record, u32)> {
        let header = (".{0,3}", bytes()).prop_map(|(key, value)| Header { key: key.as_str().into(), value });
        let headers = option::of(vec(header, 0..4).prop_map(Into::into));
        (numbers(), numbers(), bytes(), bytes(), headers, prop_oneof![Just(0), any::<u32>()]).prop_map(
            |(offset, timestamp_ms, key, value, headers, attempts)| {
                (Record { offset, timestamp_ms, key, value, headers }, attempts)
            },
        )
    }

    fn batches() -> impl Strategy<Value = Batch> {
        (".{0,5}", any::<i32>(), numbers(), vec(records(), 0..5)).prop_map(|(topic, partition, epoch, records)| Batch {
            partition: TopicPartition::new(topic, partition),
            epoch: Epoch(epoch),
            records: records.into_iter().collect(),
        })
    }

    proptest! {
        #[test]
        fn a_delivery_is_written_as_prost_writes_it(
            sequence in prop_oneof![Just(0), any::<u64>()],
            batches in vec(batches(), 0..4),
        ) {
            let mut written = Vec::new();
            let sizes = Sizes::of(sequence, &batches);
            write(sequence, &batches, &sizes, &mut written);
            let delivery = v1::Delivery { sequence, batches: batches.iter().map(batch_of_prost).collect() };
            let message = ConsumeResponse { response: Some(Response::Delivery(delivery)) };
            prop_assert_eq!(written.len(), nested_len(sizes.delivery));
            prop_assert_eq!(&written, &message.encode_to_vec());
            prop_assert_eq!(&to_bytes(sequence, &batches)[..], &written[..]);
        }

        #[test]
        fn what_another_node_wrote_goes_on_as_it_came_but_for_its_number(
            sequences in any::<[u64; 2]>(),
            batches in vec(batches(), 0..4),
        ) {
            let came = to_bytes(sequences[0], &batches);
            let relayed = relayed::read(&came).unwrap().expect("a delivery");
            prop_assert_eq!(relayed.sequence, sequences[0]);
            let offsets = |batch: &Batch| batch.records.iter().map(|dealt| dealt.record.offset).collect::<Vec<_>>();
            for (batch, read) in batches.iter().zip(&relayed.batches) {
                prop_assert_eq!(&*batch.partition.topic, &*read.topic);
                prop_assert_eq!((batch.partition.partition, batch.epoch), (read.partition, read.epoch));
                prop_assert_eq!(batch.records.len(), read.records);
                // A range is of neighbours, so it has no more offsets than there are records.
                let ranges = read.offsets.iter().flat_map(|range| range.first..=range.last).collect::<Vec<_>>();
                prop_assert_eq!(offsets(batch), ranges);
            }
            let mut written = Vec::new();
            let parts: Vec<_> = relayed.batches.into_iter().map(|batch| batch.bytes).collect();
            write_relayed(sequences[1], &parts, &mut written);
            prop_assert_eq!(&written[..], &to_bytes(sequences[1], &batches)[..]);
        }
    }
}
