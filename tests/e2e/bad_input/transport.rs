//! Floods below the contract: frames of HTTP/2, of gRPC, and none of them what a library would send.

use std::time::Duration;

use bytes::{Buf, BufMut};
use sluice_proto::v1::Settlements;
use sluice_proto::v1::consume_request::Request;
use sluice_tests::http2::{END_HEADERS, END_STREAM, Http2, call, field, frame, kind};
use sluice_tests::wire::{Wire, subscribe};
use sluice_tests::{Gateway, SOON, eventually};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use super::{Bystander, Verdict, back_off, stop, verdict};

const MIB: u64 = 1 << 20;
const CONSUME: &str = "/sluice.v1.ConsumerService/Consume";
const SETTLE: &str = "/sluice.v1.ConsumerService/Settle";
/// What a flood may cost the gateway: buffers of a connection or two, and what the allocator keeps of them.
const FLOOD_BYTES_MAX: u64 = 48 * MIB;

// === bytes instead of messages ===

#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

/// How a call ends whose frames are these bytes.
async fn end_of_bytes(gateway: &Gateway, path: &'static str, frames: Vec<Vec<u8>>) -> Verdict {
    let mut client = tonic::client::Grpc::new(gateway.channel().await);
    let path = path.parse().expect("a path");
    // The client's side stays open: what ends the stream is the frame.
    let frames = tokio_stream::StreamExt::chain(tokio_stream::iter(frames), tokio_stream::pending());
    let end = tokio::time::timeout(SOON, async {
        client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let mut answers = client.streaming(tonic::Request::new(frames), path, Raw).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok::<_, Status>(())
    });
    match end.await.expect("the call ends") {
        Err(status) => verdict(&status),
        Ok(()) => stop(Code::Ok, ""),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_frame_are_answered_as_such() {
    let mut bystander = Bystander::of("no-frame").await;
    let unreadable = || stop(Code::InvalidArgument, "UNREADABLE_FRAME");
    // Subscribe { subscription: four bytes that are no UTF-8 }, and the same for a consumer_id.
    let name = vec![0x0a, 0x06, 0x0a, 0x04, 0xff, 0xfe, 0x80, 0xc3];
    let id = vec![0x0a, 0x06, 0x1a, 0x04, 0xff, 0xfe, 0x80, 0xc3];
    let cut = vec![0x0a, 0x7f, 0x0a];
    for (what, bytes) in [("a name that is no text", name), ("an id that is no text", id), ("a frame cut short", cut)] {
        assert_eq!(end_of_bytes(&bystander.gateway, CONSUME, vec![bytes]).await, unreadable(), "{what}");
        bystander.is_served().await;
    }
    // Settle { session_id: no text }.
    let session = vec![0x0a, 0x02, 0xff, 0xff];
    assert_eq!(end_of_bytes(&bystander.gateway, SETTLE, vec![session]).await, unreadable(), "a unary call");
    let empty = stop(Code::Unimplemented, "UNKNOWN_FRAME");
    assert_eq!(end_of_bytes(&bystander.gateway, CONSUME, vec![Vec::new()]).await, empty, "an empty frame");
    bystander.loses_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_100_mb_is_refused_at_once_and_never_buffered() {
    let mut bystander = Bystander::of("100-mb").await;
    let before = bystander.gateway.rss();
    for path in [CONSUME, SETTLE] {
        let end = end_of_bytes(&bystander.gateway, path, vec![vec![0; 100 << 20]]).await;
        assert_eq!(end, back_off("FRAME_TOO_LARGE"), "{path}");
        bystander.is_served().await;
        // Announced, and nothing of it sent: the answer does not wait for the rest.
        let mut raw = Http2::connect(bystander.gateway.address()).await.expect("connect");
        let mut bytes = frame(kind::HEADERS, END_HEADERS, 1, &call(path));
        let mut announced = vec![0];
        announced.extend((100_u32 << 20).to_be_bytes());
        bytes.extend(frame(kind::DATA, 0, 1, &announced));
        raw.write(&bytes).await.expect("write");
        eventually("the call is ended", SOON, async || {
            let heard = raw.heard().frames;
            let ended = heard.contains_key(&kind::RST_STREAM) && heard.contains_key(&kind::HEADERS);
            if ended { Ok(()) } else { Err(heard) }
        })
        .await;
    }
    let grown = bystander.gateway.rss().saturating_sub(before);
    assert!(grown < FLOOD_BYTES_MAX, "{} MiB more", grown / MIB);
    bystander.loses_nothing().await;
}

/// A flood on a connection of its own: written until it is all out, or the gateway closed the connection.
async fn flood(bystander: &mut Bystander, what: &str, bytes: &[u8], deaf: bool) -> Http2 {
    let before = bystander.gateway.rss();
    let address = bystander.gateway.address().to_owned();
    let connected = if deaf { Http2::deaf(&address).await } else { Http2::connect(&address).await };
    let mut raw = connected.expect("connect");
    // A gateway that stops reading does no wrong: that is how it defends itself against one who does not read either.
    match tokio::time::timeout(Duration::from_secs(5), raw.write(bytes)).await {
        Ok(_all_or_closed) => {}
        Err(_not_read) => assert!(deaf, "{what}: a client that reads is read"),
    }
    bystander.is_served().await;
    let mut fresh = Wire::connect(&bystander.gateway, subscribe(&bystander.group, 0)).await;
    fresh.barrier().await;
    let grown = bystander.gateway.rss().saturating_sub(before);
    assert!(grown < FLOOD_BYTES_MAX, "{what}: {} MiB more", grown / MIB);
    raw
}

async fn only_the_bystanders_stream_is_left(bystander: &Bystander) {
    eventually("no stream of a flood is left", SOON, async || match bystander.gateway.metric("sluice_streams", "") {
        Some(1.0) => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_opened_and_reset_at_once_end_the_connection_and_nothing_else() {
    let mut bystander = Bystander::of("rapid-reset").await;
    let request = call(CONSUME);
    let mut bytes = Vec::new();
    for stream in (1..100_000).step_by(2) {
        bytes.extend(frame(kind::HEADERS, END_HEADERS, stream, &request));
        bytes.extend(frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    for deaf in [false, true] {
        drop(flood(&mut bystander, "a flood of resets", &bytes, deaf).await);
    }
    only_the_bystanders_stream_is_left(&bystander).await;
    bystander.loses_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_make_the_gateway_reset_them_end_the_connection_and_nothing_else() {
    let mut bystander = Bystander::of("made-to-reset").await;
    let request = call(CONSUME);
    let mut bytes = Vec::new();
    for stream in (1..100_000).step_by(2) {
        bytes.extend(frame(kind::HEADERS, END_HEADERS, stream, &request));
        // No room more: a fault of the stream, which the other side has to reset.
        bytes.extend(frame(kind::WINDOW_UPDATE, 0, stream, &0_u32.to_be_bytes()));
    }
    let raw = flood(&mut bystander, "a flood of faults", &bytes, false).await;
    eventually("the connection is ended", SOON, async || match raw.heard() {
        heard if heard.goaway.is_some() || heard.closed => Ok(()),
        heard => Err(heard),
    })
    .await;
    drop(raw);
    only_the_bystanders_stream_is_left(&bystander).await;
    bystander.loses_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_pings_settings_and_empty_frames_cost_no_memory() {
    let mut bystander = Bystander::of("floods").await;
    let repeated = |one: Vec<u8>, count: usize| one.repeat(count);
    let open = || frame(kind::HEADERS, END_HEADERS, 1, &call(CONSUME));
    let with_stream = |rest: Vec<u8>| [open(), rest].concat();
    let empty_message = frame(kind::DATA, 0, 1, &[0; 5]);
    let floods = [
        ("pings", repeated(frame(kind::PING, 0, 0, &[7; 8]), 500_000)),
        ("settings", repeated(frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]), 300_000)),
        ("room without end", repeated(frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()), 300_000)),
        ("unknown frames", repeated(frame(0x42, 0, 0, &[0; 64]), 100_000)),
        ("empty DATA", with_stream(repeated(frame(kind::DATA, 0, 1, &[]), 300_000))),
        ("empty messages", with_stream(repeated(empty_message, 300_000))),
    ];
    for (what, bytes) in floods {
        for deaf in [false, true] {
            drop(flood(&mut bystander, what, &bytes, deaf).await);
        }
    }
    only_the_bystanders_stream_is_left(&bystander).await;
    bystander.loses_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_by_the_thousand_are_refused_and_never_kept() {
    let mut bystander = Bystander::of("headers").await;
    let header = |n: usize| field(&format!("x-{n}"), "y");
    let thousands = [call(CONSUME), (0..5_000).flat_map(header).collect()].concat();
    let mut in_pieces = Vec::new();
    for (at, piece) in thousands.chunks(16_000).enumerate() {
        let last = (at + 1) * 16_000 >= thousands.len();
        let kind = if at == 0 { kind::HEADERS } else { kind::CONTINUATION };
        in_pieces.extend(frame(kind, if last { END_HEADERS } else { 0 }, 1, piece));
    }
    let raw = flood(&mut bystander, "five thousand headers", &in_pieces, false).await;
    eventually("they are answered, or end the connection", SOON, async || match raw.heard() {
        heard if heard.closed || heard.goaway.is_some() || heard.frames.contains_key(&kind::HEADERS) => Ok(()),
        heard => Err(heard),
    })
    .await;
    // Headers that never end.
    let mut endless = frame(kind::HEADERS, 0, 1, &call(CONSUME));
    let piece: Vec<u8> = (0..1_000).flat_map(header).collect();
    (0..2_000).for_each(|_| endless.extend(frame(kind::CONTINUATION, 0, 1, &piece)));
    for deaf in [false, true] {
        drop(flood(&mut bystander, "headers without end", &endless, deaf).await);
    }
    // As many as a library lets a careless program send.
    let mut request = tonic::Request::new(tokio_stream::empty());
    for n in 0..1_000 {
        let name = format!("x-{n}").parse::<tonic::metadata::MetadataKey<_>>().expect("a name");
        request.metadata_mut().insert(name, "y".parse().expect("a value"));
    }
    let channel = bystander.gateway.channel().await;
    let mut client = sluice_proto::v1::consumer_service_client::ConsumerServiceClient::new(channel);
    let end = match client.consume(request).await {
        Ok(answer) => answer.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    end.expect_err("HTTP 431, in whatever words the library has for it");
    only_the_bystanders_stream_is_left(&bystander).await;
    bystander.loses_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_without_end_and_reads_nothing_is_a_flood() {
    let mut bystander = Bystander::of("deaf-asker").await;
    let before = bystander.gateway.rss();
    let wire = Wire::connect(&bystander.gateway, subscribe(&bystander.group, 0)).await;
    let nothings = vec![sluice_proto::v1::Settlement::default(); 500];
    for request_id in 1..=20_000 {
        let settlements = Settlements { request_id, settlements: nothings.clone(), ..Settlements::default() };
        wire.send(Request::Settle(settlements));
    }
    eventually("it is told so, or is not read", SOON, async || {
        bystander.is_served().await;
        let refused = bystander.gateway.metric("sluice_streams_refused_total", "SETTLE_FLOOD").unwrap_or(0.0);
        let only_one = bystander.gateway.metric("sluice_sessions", "") == Some(1.0);
        if refused >= 1.0 && only_one { Ok(()) } else { Err((refused, only_one)) }
    })
    .await;
    let grown = bystander.gateway.rss().saturating_sub(before);
    assert!(grown < 3 * FLOOD_BYTES_MAX, "{} MiB more", grown / MIB);
    drop(wire);
    bystander.loses_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_or_nonsense_are_nobodys_loss() {
    let mut bystander = Bystander::of("nonsense").await;
    let address = bystander.gateway.address().to_owned();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(tokio::net::TcpStream::connect(&address).await.expect("connect"));
    }
    for bytes in
        [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), vec![0x16, 3, 1, 2, 0], vec![0; 100_000], vec![b'A'; 1 << 20]]
    {
        let mut stream = tokio::net::TcpStream::connect(&address).await.expect("connect");
        let _closed = tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await;
    }
    // Calls of no service, of no method, and with an end before the beginning.
    for path in ["/", "/no.Such/Method", "/sluice.v1.ConsumerService/Nothing", CONSUME] {
        let mut raw = Http2::connect(&address).await.expect("connect");
        let flags = END_HEADERS | END_STREAM;
        raw.write(&frame(kind::HEADERS, flags, 1, &call(path))).await.expect("write");
        eventually("the call is answered", SOON, async || match raw.heard() {
            heard if heard.frames.contains_key(&kind::HEADERS) => Ok(()),
            heard => Err(heard),
        })
        .await;
    }
    bystander.is_served().await;
    drop(silent);
    bystander.loses_nothing().await;
}
