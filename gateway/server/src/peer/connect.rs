//! How this node reaches another: TCP, and TLS where the config has it. What fails is kept in words, since what gRPC makes of it
//! says only that a transport failed.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tonic::codegen::{BoxFuture, Service};

use super::refusals::Refusal;
use super::tls::Tls;
use super::transport::Transport;

/// The first byte of what a TLS server says to who does not speak TLS. HTTP/2 begins with another.
pub(super) const TLS_ALERT: u8 = 0x15;

/// Makes connections to one address.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    address: Arc<str>,
    tls: Option<Arc<Tls>>,
    refusal: Slot,
}

/// The first refusal of a connector's connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot(Arc<Mutex<Option<Refusal>>>);

/// A connection to a peer. Whether it takes this node's identity, it says later.
#[derive(Debug)]
pub(super) struct Dialed {
    transport: Transport,
    refusal: Slot,
    /// Nothing was read yet.
    is_new: bool,
}

// === impl Slot ===

impl Slot {
    fn note(&self, error: &io::Error) {
        if let Some(refusal) = Refusal::of(error) {
            self.set(refusal);
        }
    }

    fn set(&self, refusal: Refusal) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(refusal);
    }
}

// === impl Connector ===

impl Connector {
    pub(super) fn new(address: &str, tls: Option<Arc<Tls>>) -> Self {
        Self { address: address.into(), tls, refusal: Slot::default() }
    }

    /// Why a connection did not come about, where TLS knows.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn connect(self) -> io::Result<Dialed> {
        let stream = TcpStream::connect(&*self.address).await?;
        stream.set_nodelay(true)?;
        let refusal = self.refusal;
        let Some(tls) = self.tls else {
            return Ok(Dialed { transport: Transport::Plain(stream), refusal, is_new: true });
        };
        let host = self.address.rsplit_once(':').map_or(&*self.address, |(host, _)| host);
        let name = tls.name_for(host.trim_matches(['[', ']']));
        match TlsConnector::from(tls.client()).connect(name, stream).await {
            Ok(stream) => {
                let transport = Transport::Tls(Box::new(stream.into()));
                Ok(Dialed { transport, refusal, is_new: true })
            }
            Err(error) => {
                refusal.note(&error);
                Err(error)
            }
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Dialed>;
    type Error = io::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let connect = self.clone().connect();
        Box::pin(async move { connect.await.map(TokioIo::new) })
    }
}

// === impl Dialed ===

impl AsyncRead for Dialed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { transport, refusal, is_new } = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut *transport).poll_read(cx, buf);
        match transport {
            Transport::Plain(_) if *is_new => {
                let Some(first) = buf.filled().get(before) else { return read };
                *is_new = false;
                if *first == TLS_ALERT {
                    let tls = Refusal::tls();
                    refusal.set(tls.clone());
                    return Poll::Ready(Err(io::Error::other(tls)));
                }
            }
            Transport::Plain(_) => {}
            Transport::Tls(_) => {
                if let Poll::Ready(Err(error)) = &read {
                    refusal.note(error);
                }
            }
        }
        read
    }
}

impl AsyncWrite for Dialed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }
}
