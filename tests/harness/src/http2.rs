//! A client that speaks HTTP/2 frame by frame, and as rudely as a test wants: no library sends what floods are made of.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;

/// Kinds of frames.
pub mod kind {
    /// Body.
    pub const DATA: u8 = 0;
    /// A request or response begins, or ends.
    pub const HEADERS: u8 = 1;
    /// A stream is given up.
    pub const RST_STREAM: u8 = 3;
    /// Parameters of the connection.
    pub const SETTINGS: u8 = 4;
    /// Are you there?
    pub const PING: u8 = 6;
    /// The connection ends.
    pub const GOAWAY: u8 = 7;
    /// Room for more.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of the headers.
    pub const CONTINUATION: u8 = 9;
}

/// The flag that headers are complete.
pub const END_HEADERS: u8 = 4;
/// The flag that this side is done.
pub const END_STREAM: u8 = 1;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What came from the other side.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// How many frames of each kind.
    pub frames: BTreeMap<u8, usize>,
    /// The error code of a GOAWAY.
    pub goaway: Option<u32>,
    /// The connection is closed.
    pub closed: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Http2 {
    writing: OwnedWriteHalf,
    heard: Arc<Mutex<Heard>>,
    reading: Option<JoinHandle<()>>,
    /// Kept, so that the other side sees no close.
    _unread: Option<OwnedReadHalf>,
}

impl Http2 {
    /// Connects, and reads whatever comes.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn connect(address: &str) -> io::Result<Self> {
        Self::open(address, true).await
    }

    /// Connects, and never reads a byte.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn deaf(address: &str) -> io::Result<Self> {
        Self::open(address, false).await
    }

    async fn open(address: &str, reads: bool) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (reading, mut writing) = stream.into_split();
        writing.write_all(PREFACE).await?;
        writing.write_all(&frame(kind::SETTINGS, 0, 0, &[])).await?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (reading, unread) =
            if reads { (Some(tokio::spawn(read(reading, Arc::clone(&heard)))), None) } else { (None, Some(reading)) };
        Ok(Self { writing, heard, reading, _unread: unread })
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// What the socket says: the other side may have closed.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writing.write_all(bytes).await
    }

    /// What came so far.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.heard.lock().expect("not poisoned").clone()
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.abort();
        }
    }
}

async fn read(reading: OwnedReadHalf, heard: Arc<Mutex<Heard>>) {
    let mut reading = BufReader::new(reading);
    while let Ok((kind, payload)) = read_frame(&mut reading).await {
        let mut heard = heard.lock().expect("not poisoned");
        *heard.frames.entry(kind).or_default() += 1;
        if kind == kind::GOAWAY {
            heard.goaway = payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().expect("four bytes")));
        }
    }
    heard.lock().expect("not poisoned").closed = true;
}

async fn read_frame(reading: &mut BufReader<OwnedReadHalf>) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    reading.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).expect("24 bits")];
    reading.read_exact(&mut payload).await?;
    Ok((head[3], payload))
}

/// A frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("24 bits").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The headers of a gRPC call, in the plainest of encodings.
#[must_use]
pub fn call(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "sluice"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// One header, literal and not indexed.
#[must_use]
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        length(&mut bytes, text.len());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// HPACK's integer with a prefix of seven bits.
fn length(bytes: &mut Vec<u8>, length: usize) {
    if length < 127 {
        bytes.push(u8::try_from(length).expect("seven bits"));
        return;
    }
    bytes.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        bytes.push(u8::try_from(rest & 0x7f).expect("seven bits") | 0x80);
        rest >>= 7;
    }
    bytes.push(u8::try_from(rest).expect("seven bits"));
}
