//! What the next version of a node would say besides, so that tests can run two versions side by side: with the feature
//! `next-protocol` each frame, to other nodes and to clients, is followed by one that this version does not know. What such frames
//! look like stands in the contract's `next.rs`. Without the feature nothing is here.

#[cfg(feature = "next-protocol")]
pub(crate) use of_next::{Spoken, add_unknown, spoken};
#[cfg(not(feature = "next-protocol"))]
pub(crate) use of_now::{Spoken, add_unknown, spoken};

#[cfg(not(feature = "next-protocol"))]
mod of_now {
    use bytes::BufMut;

    /// A stream of frames as this version says them.
    pub(crate) type Spoken<S> = S;

    pub(crate) fn spoken<S>(stream: S) -> Spoken<S> {
        stream
    }

    /// Nothing.
    pub(crate) fn add_unknown(_: &mut impl BufMut) {}
}

#[cfg(feature = "next-protocol")]
mod of_next {
    use std::pin::Pin;
    use std::task::{Context, Poll, ready};

    pub(crate) use sluice_proto::next::add_unknown;
    use sluice_proto::peer::v1::{RelayRequest, RelayResponse};
    use sluice_proto::v1::ConsumeResponse;
    use tokio_stream::Stream;
    use tonic::Status;

    use crate::session::Outgoing;

    /// A stream of frames as the next version says them.
    #[derive(Debug)]
    pub(crate) struct Spoken<S: Stream> {
        stream: S,
        owed: Option<S::Item>,
    }

    pub(crate) fn spoken<S: Stream>(stream: S) -> Spoken<S> {
        Spoken { stream, owed: None }
    }

    /// A frame about the same, of a kind that this version does not know.
    pub(crate) trait Later: Sized {
        fn later(&self) -> Option<Self>;
    }

    impl Later for RelayRequest {
        fn later(&self) -> Option<Self> {
            Some(Self { session: self.session, request: None })
        }
    }

    impl Later for Result<RelayResponse, Status> {
        fn later(&self) -> Option<Self> {
            self.as_ref().ok().map(|frame| Ok(RelayResponse { session: frame.session, response: None }))
        }
    }

    impl Later for Result<Outgoing, Status> {
        fn later(&self) -> Option<Self> {
            self.as_ref().ok().map(|_| Ok(Outgoing::Message(Box::new(ConsumeResponse { response: None }))))
        }
    }

    impl<S> Stream for Spoken<S>
    where
        S: Stream + Unpin,
        S::Item: Later + Unpin,
    {
        type Item = S::Item;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
            if let Some(owed) = self.owed.take() {
                return Poll::Ready(Some(owed));
            }
            let frame = ready!(Pin::new(&mut self.stream).poll_next(cx));
            self.owed = frame.as_ref().and_then(Later::later);
            Poll::Ready(frame)
        }
    }
}
