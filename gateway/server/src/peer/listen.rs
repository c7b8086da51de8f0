//! The listener for other nodes: what comes in is a peer's connection, or it is told why it is not.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::refusals::{Reason, Refusal, Refusals, Side};
use super::tls::Tls;
use super::transport::Transport;
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
) -> ReceiverStream<io::Result<Transport>> {
    let (sender, receiver) = mpsc::channel(HANDSHAKES_MAX);
    tokio::spawn(accept(listener, door, sender, close));
    ReceiverStream::new(receiver)
}

async fn accept(
    listener: TcpListener,
    door: Door,
    connections: mpsc::Sender<io::Result<Transport>>,
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
    async fn let_in(&self, stream: TcpStream, from: SocketAddr) -> Option<Transport> {
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

    async fn know(&self, stream: TcpStream) -> Result<Transport, Refused> {
        let mut first = [0];
        if !matches!(stream.peek(&mut first).await, Ok(1)) {
            // It came and went.
            return Err((None, None));
        }
        let encrypted = first[0] == TLS_HANDSHAKE;
        match (&self.tls, encrypted) {
            (None, false) => Ok(Transport::Plain(stream)),
            (None, true) => Err((Some(Refusal::tls()), Some((stream, PLAIN_ANSWER)))),
            (Some(_), false) => Err((Some(Refusal::plain()), Some((stream, &NOT_PLAIN)))),
            (Some(tls), true) => match TlsAcceptor::from(tls.server()).accept(stream).into_fallible().await {
                Ok(stream) => Ok(Transport::Tls(Box::new(stream.into()))),
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
