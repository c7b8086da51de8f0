//! What another node dealt, as an edge gives it on: read only as far as the edge has to know it, and never copied.
//!
//! Contract: a batch keeps its bytes, whatever stands in it; only what names its leases is read. Fields may come in any order.

use bytes::Bytes;
use sluice_core::{Epoch, OffsetRange};

use super::codec::field;

/// A delivery of another node.
#[derive(Debug)]
pub(crate) struct Relayed {
    /// The owner's.
    pub(crate) sequence: u64,
    pub(crate) batches: Vec<RelayedBatch>,
}

/// Records of one partition.
#[derive(Debug)]
pub(crate) struct RelayedBatch {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) epoch: Epoch,
    /// Of its records, in their order; neighbours are one range.
    pub(crate) offsets: Vec<OffsetRange>,
    pub(crate) records: usize,
    /// A `v1::Batch` on the wire.
    pub(crate) bytes: Bytes,
}

/// It is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame that cannot be read")]
pub(crate) struct Malformed;

/// Reads a `v1::ConsumeResponse`. `None`: it is no delivery.
pub(crate) fn read(frame: &Bytes) -> Result<Option<Relayed>, Malformed> {
    let mut found = None;
    for field in Fields::of(frame) {
        // What else stands there is of a later version.
        if let (field::RESPONSE_DELIVERY, Value::Bytes(delivery)) = field? {
            found = Some(delivery);
        }
    }
    found.map(|delivery| self::delivery(frame, delivery)).transpose()
}

fn delivery(frame: &Bytes, delivery: &[u8]) -> Result<Relayed, Malformed> {
    let mut relayed = Relayed { sequence: 0, batches: Vec::new() };
    for field in Fields::of(delivery) {
        match field? {
            (field::DELIVERY_SEQUENCE, Value::Number(number)) => relayed.sequence = number,
            (field::DELIVERY_BATCHES, Value::Bytes(bytes)) => relayed.batches.push(batch(frame.slice_ref(bytes))?),
            _ => {}
        }
    }
    Ok(relayed)
}

fn batch(bytes: Bytes) -> Result<RelayedBatch, Malformed> {
    let (mut topic, mut partition, mut epoch) = ("", 0, 0);
    let (mut offsets, mut records) = (Vec::new(), 0);
    for field in Fields::of(&bytes) {
        match field? {
            (field::BATCH_RECORDS, Value::Bytes(record)) => {
                records += 1;
                add(&mut offsets, offset(record)?);
            }
            (field::BATCH_TOPIC, Value::Bytes(name)) => topic = std::str::from_utf8(name).map_err(|_| Malformed)?,
            // int32 and int64 stand on the wire as 64 bits of two's complement.
            (field::BATCH_PARTITION, Value::Number(number)) => partition = number as i32,
            (field::BATCH_EPOCH, Value::Number(number)) => epoch = number.cast_signed(),
            _ => {}
        }
    }
    let topic = topic.to_owned();
    Ok(RelayedBatch { topic, partition, epoch: Epoch(epoch), offsets, records, bytes })
}

/// It stands first, unless it is 0: then it is left out.
fn offset(record: &[u8]) -> Result<i64, Malformed> {
    for field in Fields::of(record) {
        if let (field::RECORD_OFFSET, Value::Number(number)) = field? {
            return Ok(number.cast_signed());
        }
    }
    Ok(0)
}

/// Adds an offset to ranges of those before it.
pub(crate) fn add(ranges: &mut Vec<OffsetRange>, offset: i64) {
    match ranges.last_mut() {
        Some(range) if range.last.checked_add(1) == Some(offset) => range.last = offset,
        _ => ranges.push(OffsetRange { first: offset, last: offset }),
    }
}

// === the wire ===

/// The fields of a message, one after another.
struct Fields<'a> {
    rest: &'a [u8],
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a fixed width; none that is read here is.
    Other,
}

impl<'a> Fields<'a> {
    fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn field(&mut self) -> Result<(u8, Value<'a>), Malformed> {
        let key = self.varint()?;
        // None that is read here has a larger number than fits.
        let number = u8::try_from(key >> 3).unwrap_or(u8::MAX);
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(usize::try_from(len).map_err(|_| Malformed)?)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return Err(Malformed),
        };
        Ok((number, value))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Seven bits a byte.
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for (at, byte) in self.rest.iter().enumerate().take(10) {
            number |= u64::from(byte & 0x7F) << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(number);
            }
        }
        Err(Malformed)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u8, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use sluice_proto::v1::{self, consume_response::Response};

    use super::*;

    #[test]
    fn what_is_no_delivery_is_told_from_one() {
        let ping = v1::ConsumeResponse { response: Some(Response::Ping(v1::Ping {})) };
        assert!(read(&ping.encode_to_vec().into()).unwrap().is_none());
        assert!(read(&Bytes::new()).unwrap().is_none());
        let empty = v1::ConsumeResponse { response: Some(Response::Delivery(v1::Delivery::default())) };
        assert!(read(&empty.encode_to_vec().into()).unwrap().is_some_and(|one| one.batches.is_empty()));
    }

    #[test]
    fn fields_are_read_in_any_order_and_unknown_ones_stay() {
        // Records before the names, a field of each width that nobody knows, and the batch before the number.
        let record: &[u8] = &[0x18, 3, 0x08, 7];
        let mut batch = vec![0x22, 4];
        batch.extend_from_slice(record);
        batch.extend_from_slice(&[0xB9, 0x06, 1, 2, 3, 4, 5, 6, 7, 8, 0xBD, 0x06, 1, 2, 3, 4, 0xB0, 0x06, 1]);
        batch.extend_from_slice(&[0x22, 2, 0x08, 8, 0x22, 0, 0x18, 5, 0x10, 2, 0x0A, 1, b't']);
        let mut frame = vec![0x12, u8::try_from(batch.len() + 4).unwrap(), 0x12, u8::try_from(batch.len()).unwrap()];
        frame.extend_from_slice(&batch);
        frame.extend_from_slice(&[0x08, 9]);
        // And one beside the delivery.
        frame.extend_from_slice(&[0xB0, 0x06, 1]);
        let relayed = read(&frame.into()).unwrap().unwrap();
        assert_eq!(relayed.sequence, 9);
        let read = &relayed.batches[0];
        assert_eq!((&*read.topic, read.partition, read.epoch, read.records), ("t", 2, Epoch(5), 3));
        assert_eq!(read.offsets, [OffsetRange { first: 7, last: 8 }, OffsetRange::one(0)]);
        assert_eq!(read.bytes, batch);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // What prost takes is taken.
            let frame = Bytes::from(bytes);
            let read = read(&frame);
            let of_prost = v1::ConsumeResponse::decode(frame).ok().and_then(|message| message.response);
            if let Some(Response::Delivery(delivery)) = of_prost {
                let relayed = read.unwrap().unwrap();
                prop_assert_eq!((relayed.sequence, relayed.batches.len()), (delivery.sequence, delivery.batches.len()));
            }
        }

        #[test]
        fn what_is_cut_short_is_no_frame(cut in 1_usize..1_000) {
            let record = |offset| v1::Record { offset, value: Some(Bytes::from(vec![1; 50])), ..Default::default() };
            let batch = v1::Batch { topic: "t".into(), records: (1..9).map(record).collect(), ..Default::default() };
            let delivery = v1::Delivery { sequence: 1, batches: vec![batch] };
            let frame = Bytes::from(v1::ConsumeResponse { response: Some(Response::Delivery(delivery)) }.encode_to_vec());
            let cut = 1 + cut % (frame.len() - 1);
            prop_assert_eq!(read(&frame.slice(..cut)).err(), Some(Malformed));
        }
    }
}
