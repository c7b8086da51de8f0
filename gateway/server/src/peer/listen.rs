//! The listener for other nodes: what comes in is a peer's connection, or it is told why it is not.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::refusals::{Reason, Refusal, Refusals, Side};
use super::tls::Tls;
use super::waiting::Waiting;

/// Connections that have not shown yet who they are.
const HANDSHAKES_MAX: usize = 256;
/// What is refused is heard out for so long, or what it is told would be lost with its own words.
const LINGER: Duration = Duration::from_secs(1);
/// A listener without descriptors tries again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The first byte of a TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;
/// Says to whoever speaks without TLS that it is meant here: a fatal alert, `protocol_version`.
const NOT_PLAIN: [u8; 7] = [super::connect::TLS_ALERT, 3, 3, 0, 2, 2, 70];
/// Says to whoever speaks TLS that it is not meant here.
const PLAIN_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nthis port speaks without TLS\n";

/// A connection of a peer.
#[derive(Debug)]
pub(super) enum Accepted {
    /// As it is: the config says so.
    Plain(TcpStream),
    /// Of a peer whose identity is known to be good.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why not, and what to tell it before it is hung up on.
type Refused = (Option<Refusal>, Option<(TcpStream, &'static [u8])>);

/// What the task of the listener needs.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) refusals: Arc<Refusals>,
    /// For the handshake.
    pub(super) timeout: Duration,
}

/// Connections of peers, as they come, until `close`.
pub(super) fn incoming(
    listener: TcpListener,
    door: Door,
    close: CancellationToken,
) -> ReceiverStream<io::Result<Accepted>> {
    let (sender, receiver) = mpsc::channel(HANDSHAKES_MAX);
    tokio::spawn(accept(listener, door, sender, close));
    ReceiverStream::new(receiver)
}

async fn accept(
    listener: TcpListener,
    door: Door,
    connections: mpsc::Sender<io::Result<Accepted>>,
    close: CancellationToken,
) {
    let waiting = Waiting::new(HANDSHAKES_MAX);
    loop {
        let accepted = tokio::select! {
            () = close.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the listener for other nodes does not get a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (place, turned_out) = waiting.enter(from.ip());
        if let Some(turned_out) = turned_out {
            let busy = format!(
                "{HANDSHAKES_MAX} connections have not shown yet who they are, most of them from here: the oldest makes room"
            );
            door.refusals.note(Side::Accepted, &turned_out.to_string(), &Refusal::new(Reason::Busy, busy));
        }
        let (door, connections) = (door.clone(), connections.clone());
        tokio::spawn(async move {
            let accepted = tokio::select! {
                accepted = door.let_in(stream, from) => accepted,
                () = place.lost.cancelled() => None,
            };
            if let Some(accepted) = accepted {
                let _server_is_gone = connections.send(Ok(accepted)).await;
            }
            drop(place);
        });
    }
}

// === impl Door ===

impl Door {
    async fn let_in(&self, stream: TcpStream, from: SocketAddr) -> Option<Accepted> {
        let _ = stream.set_nodelay(true);
        let known = timeout(self.timeout, self.know(stream)).await;
        let silent = || Err((Some(Refusal::new(Reason::Silent, "it did not say in time who it is")), None));
        match known.unwrap_or_else(|_| silent()) {
            Ok(accepted) => Some(accepted),
            Err((refusal, answer)) => {
                if let Some(refusal) = refusal {
                    self.refusals.note(Side::Accepted, &from.ip().to_string(), &refusal);
                }
                if let Some((stream, what)) = answer {
                    tell(stream, what).await;
                }
                None
            }
        }
    }

    async fn know(&self, stream: TcpStream) -> Result<Accepted, Refused> {
        let mut first = [0];
        if !matches!(stream.peek(&mut first).await, Ok(1)) {
            // It came and went.
            return Err((None, None));
        }
        let encrypted = first[0] == TLS_HANDSHAKE;
        match (&self.tls, encrypted) {
            (None, false) => Ok(Accepted::Plain(stream)),
            (None, true) => Err((Some(Refusal::tls()), Some((stream, PLAIN_ANSWER)))),
            (Some(_), false) => Err((Some(Refusal::plain()), Some((stream, &NOT_PLAIN)))),
            (Some(tls), true) => match TlsAcceptor::from(tls.server()).accept(stream).into_fallible().await {
                Ok(stream) => Ok(Accepted::Tls(Box::new(stream))),
                Err((error, stream)) => Err((Refusal::of(&error), Some((stream, &[])))),
            },
        }
    }
}

/// Says it, and waits until the other side has read it.
async fn tell(mut stream: TcpStream, what: &[u8]) {
    let tell = async {
        stream.write_all(what).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1_024];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _gone_or_late = timeout(LINGER, tell).await;
}

// === impl Accepted ===

impl Connected for Accepted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match self {
            Self::Plain(stream) => stream.connect_info(),
            Self::Tls(stream) => stream.get_ref().0.connect_info(),
        }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
