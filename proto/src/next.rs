//! What a later revision of the contract may look like to this one (feature `next-protocol`, for tests alone): every message has
//! fields that this one does not have. A frame with nothing else in it is one whose kind this one does not know.

use std::any::TypeId;
use std::marker::PhantomData;

use bytes::BufMut;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use tonic::Status;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

/// A message and a number: where a later revision would put them, after all that this one has.
const UNKNOWN_MESSAGE: u32 = 1_000;
const UNKNOWN_NUMBER: u32 = 1_001;

/// Writes each message with fields of a later revision, and reads as ever.
#[derive(Debug, Clone, Copy)]
pub struct NextCodec<T, U>(PhantomData<(T, U)>);

/// See `NextCodec`.
#[derive(Debug, Clone, Copy)]
pub struct NextEncoder<T>(PhantomData<T>);

/// Appends the fields of a later revision to a message that is being written.
pub fn add_unknown(to: &mut impl BufMut) {
    encode_key(UNKNOWN_MESSAGE, WireType::LengthDelimited, to);
    encode_varint(5, to);
    to.put_slice(b"later");
    encode_key(UNKNOWN_NUMBER, WireType::Varint, to);
    encode_varint(u64::MAX, to);
}

/// Writes a message with such fields. What a frame between nodes or to a client holds has them too.
///
/// # Panics
/// When prost wrote what is no message.
pub fn encode<T: Message + 'static>(message: &T, to: &mut impl BufMut) {
    let frames = [
        TypeId::of::<crate::v1::ConsumeResponse>(),
        TypeId::of::<crate::peer::v1::RelayRequest>(),
        TypeId::of::<crate::peer::v1::RelayResponse>(),
    ];
    let bytes = message.encode_to_vec();
    let mut rest = &bytes[..];
    // Of these frames each field is a number or a message.
    while frames.contains(&TypeId::of::<T>()) && !rest.is_empty() {
        let (field, wire) = decode_key(&mut rest).expect("prost wrote a key");
        let value = decode_varint(&mut rest).expect("prost wrote a number");
        encode_key(field, wire, to);
        if wire == WireType::Varint {
            encode_varint(value, to);
            continue;
        }
        let (inner, after) = rest.split_at(usize::try_from(value).expect("it is in memory"));
        let mut grown = inner.to_vec();
        add_unknown(&mut grown);
        encode_varint(grown.len() as u64, to);
        to.put_slice(&grown);
        rest = after;
    }
    to.put_slice(rest);
    add_unknown(to);
}

// === impl NextCodec, NextEncoder ===

impl<T, U> Default for NextCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for NextCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = NextEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        NextEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

impl<T: Message + 'static> Encoder for NextEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        encode(&item, to);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::v1::relay_request::Request;
    use crate::peer::v1::{Hello, RelayRequest};

    #[test]
    fn this_revision_reads_the_next_one_and_sees_nothing_of_it() {
        let hello = Hello { node: "a".to_owned(), ..Hello::default() };
        for request in [None, Some(Request::Hello(hello))] {
            let frame = RelayRequest { session: 7, request };
            let mut bytes = Vec::new();
            encode(&frame, &mut bytes);
            assert!(bytes.len() > frame.encoded_len());
            assert_eq!(RelayRequest::decode(&bytes[..]).expect("it reads it"), frame);
        }
    }
}
