//! What goes from an edge to an owner over one connection. Whoever puts something in never waits, so what waits is bounded: a
//! session that settles on and on is a flood, as on one node, and a connection whose owner takes nothing is given up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use sluice_proto::peer::v1::RelayRequest;
use sluice_proto::peer::v1::relay_request::Request;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

/// Ranges of settlements that wait, a connection.
const RANGES_MAX: usize = 1 << 20;

/// One session's share of what waits, and its limit.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    ranges: Arc<AtomicUsize>,
    max: usize,
}

/// More waits than the session may have waiting. Holds the limit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full(pub(crate) usize);

#[derive(Debug)]
struct Queued {
    request: RelayRequest,
    ranges: usize,
    share: Option<Share>,
}

/// Puts into the queue. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Conn {
    queue: mpsc::UnboundedSender<Queued>,
    ranges: Arc<AtomicUsize>,
    /// The connection is over, or is to be given up.
    pub(crate) over: CancellationToken,
}

/// The other end: what the transport pulls.
#[derive(Debug)]
pub(crate) struct Requests {
    queue: mpsc::UnboundedReceiver<Queued>,
    ranges: Arc<AtomicUsize>,
}

/// Both ends.
pub(crate) fn queue() -> (Conn, Requests) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let ranges = Arc::new(AtomicUsize::new(0));
    let conn = Conn { queue: sender, ranges: ranges.clone(), over: CancellationToken::new() };
    (conn, Requests { queue: receiver, ranges })
}

// === impl Share ===

impl Share {
    pub(crate) fn new(max: usize) -> Self {
        Self { ranges: Arc::new(AtomicUsize::new(0)), max }
    }
}

// === impl Conn ===

impl Conn {
    /// Of a connection that is over it goes nowhere: its end is told by another way.
    pub(crate) fn send(&self, session: u64, request: Request) {
        let _ = self.put(session, request, 1, None);
    }

    /// Settlements, of so many ranges.
    pub(crate) fn settle(&self, session: u64, request: Request, ranges: usize, share: &Share) -> Result<(), Full> {
        self.put(session, request, ranges, Some(share.clone()))
    }

    fn put(&self, session: u64, request: Request, ranges: usize, share: Option<Share>) -> Result<(), Full> {
        if let Some(share) = &share {
            let waits = share.ranges.fetch_add(ranges, Ordering::AcqRel);
            if waits + ranges > share.max {
                share.ranges.fetch_sub(ranges, Ordering::AcqRel);
                return Err(Full(share.max));
            }
        }
        if self.ranges.fetch_add(ranges, Ordering::AcqRel) + ranges > RANGES_MAX {
            self.over.cancel();
        }
        let request = RelayRequest { session, request: Some(request) };
        let _ = self.queue.send(Queued { request, ranges, share });
        Ok(())
    }
}

// === impl Requests ===

impl Stream for Requests {
    type Item = RelayRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(Queued { request, ranges, share }) = ready!(self.queue.poll_recv(cx)) else {
            return Poll::Ready(None);
        };
        self.ranges.fetch_sub(ranges, Ordering::AcqRel);
        if let Some(share) = share {
            share.ranges.fetch_sub(ranges, Ordering::AcqRel);
        }
        Poll::Ready(Some(request))
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::peer::v1::Drain;
    use tokio_stream::StreamExt as _;

    use super::*;

    const ANY: Request = Request::Drain(Drain {});

    #[tokio::test]
    async fn a_session_has_a_share_of_what_may_wait() {
        let (conn, mut requests) = queue();
        let share = Share::new(10);
        assert_eq!(conn.settle(1, ANY, 9, &share), Ok(()));
        assert_eq!(conn.settle(1, ANY, 2, &share), Err(Full(10)));
        assert_eq!(conn.settle(2, ANY, 9, &Share::new(10)), Ok(()));
        assert_eq!(requests.next().await.unwrap().session, 1);
        assert_eq!(conn.settle(1, ANY, 10, &share), Ok(()));
    }

    #[tokio::test]
    async fn a_connection_that_takes_nothing_is_given_up() {
        let (conn, _requests) = queue();
        let share = Share::new(usize::MAX);
        conn.settle(1, ANY, RANGES_MAX, &share).unwrap();
        assert!(!conn.over.is_cancelled());
        conn.send(2, ANY);
        assert!(conn.over.is_cancelled());
    }
}
