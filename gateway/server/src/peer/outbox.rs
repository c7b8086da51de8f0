//! What goes from an owner to an edge over one connection. Whoever puts something in never waits, so what waits is bounded: records
//! by the windows of their sessions, a status by being the last one, all else by a limit of the connection. One whose edge takes
//! nothing is given up, and what waits for it is forgotten at once: its transport may hang for as long as the edge likes.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use sluice_proto::peer::v1::relay_response::Response as ToEdge;
use sluice_proto::peer::v1::{RelayResponse, Status as NodeStatus};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tonic::Status;

use super::wire;
use crate::session::{Answers, EdgeFrames, Frame};

/// Answers that wait, a connection: ranges of settlements, and one for each other frame that is no record.
const ANSWERS_MAX: usize = 1 << 18;

/// What one node says to another that is about no session.
#[derive(Debug)]
enum Control {
    Say(ToEdge),
    /// The status as it is when it is taken.
    Status,
    /// The stream ends.
    End,
}

#[derive(Debug)]
struct Queues {
    frames: mpsc::UnboundedReceiver<(u64, Frame)>,
    control: mpsc::UnboundedReceiver<Control>,
}

/// `None`: the connection is over.
type Shared = Arc<Mutex<Option<Queues>>>;

/// Puts something in.
#[derive(Debug)]
pub(super) struct Outbox {
    /// Of the connection's sessions.
    pub(super) frames: EdgeFrames,
    control: mpsc::UnboundedSender<Control>,
    answers: Answers,
    status_waits: Arc<AtomicBool>,
    queues: Shared,
}

/// The other end: what the transport pulls.
#[derive(Debug)]
pub(super) struct Responses {
    queues: Shared,
    answers: Answers,
    status: watch::Receiver<NodeStatus>,
    status_waits: Arc<AtomicBool>,
    /// Sessions that ended: nothing more is read of them.
    ended: mpsc::UnboundedSender<u64>,
}

/// Both ends.
pub(super) fn outbox(status: watch::Receiver<NodeStatus>, ended: mpsc::UnboundedSender<u64>) -> (Outbox, Responses) {
    let (frame_sender, frames) = mpsc::unbounded_channel();
    let (control_sender, control) = mpsc::unbounded_channel();
    let queues = Arc::new(Mutex::new(Some(Queues { frames, control })));
    let (answers, status_waits) = (Answers::new(ANSWERS_MAX), Arc::new(AtomicBool::new(false)));
    let outbox = Outbox {
        frames: EdgeFrames::far(frame_sender, answers.clone()),
        control: control_sender,
        answers: answers.clone(),
        status_waits: status_waits.clone(),
        queues: queues.clone(),
    };
    (outbox, Responses { queues, answers, status, status_waits, ended })
}

fn drop_all(queues: &Shared) {
    let all = queues.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(all);
}

// === impl Outbox ===

impl Outbox {
    /// Comes before what is about sessions: a peer that has much to read must not be taken for dead.
    pub(super) fn say(&self, what: ToEdge) {
        if self.answers.put(1) {
            let _ = self.control.send(Control::Say(what));
        }
    }

    /// The node's status has changed.
    pub(super) fn tell_status(&self) {
        if !self.status_waits.swap(true, Ordering::AcqRel) {
            let _ = self.control.send(Control::Status);
        }
    }

    /// Waits until more waits than may.
    pub(super) async fn overflows(&self) {
        self.answers.over.cancelled().await;
    }

    pub(super) fn overflowed(&self) -> bool {
        self.answers.over.is_cancelled()
    }

    /// Waits until nobody takes anything any more.
    pub(super) async fn closed(&self) {
        self.frames.closed().await;
    }

    /// Nothing more is said, and what waits is forgotten.
    pub(super) fn end(&self) {
        // Whoever waits for something to take is woken by it.
        let _ = self.control.send(Control::End);
        drop_all(&self.queues);
    }
}

// === impl Responses ===

impl Responses {
    fn say(&self, control: Control) -> Option<ToEdge> {
        match control {
            Control::Say(what) => {
                self.answers.taken(1);
                Some(what)
            }
            Control::Status => {
                // The flag falls first: a change that comes after the reading is told again.
                self.status_waits.store(false, Ordering::Release);
                Some(ToEdge::Status(self.status.borrow().clone()))
            }
            Control::End => None,
        }
    }
}

impl Stream for Responses {
    type Item = Result<RelayResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Queues { frames, control }) = &mut *queues else { return Poll::Ready(None) };
        if let Poll::Ready(control) = control.poll_recv(cx) {
            let said = control.and_then(|control| self.say(control));
            return Poll::Ready(said.map(|response| Ok(RelayResponse { session: 0, response: Some(response) })));
        }
        loop {
            let Some((session, frame)) = ready!(frames.poll_recv(cx)) else { return Poll::Ready(None) };
            self.answers.taken(frame.answers());
            if matches!(frame, Frame::End(_)) {
                let _ = self.ended.send(session);
            }
            if let Some(response) = wire::to_response(frame) {
                return Poll::Ready(Some(Ok(RelayResponse { session, response: Some(response) })));
            }
        }
    }
}

impl Drop for Responses {
    fn drop(&mut self) {
        drop_all(&self.queues);
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::peer::v1::Pong;
    use tokio_stream::StreamExt as _;

    use super::*;

    const ECHO: Frame = Frame::Echo { number: 1, held_records: 0, held_bytes: 0 };

    fn records() -> Frame {
        Frame::Deliver { sequence: 1, batches: Vec::new() }
    }

    #[tokio::test]
    async fn a_connection_that_takes_no_answers_is_over_and_keeps_nothing() {
        let (_status, status) = watch::channel(NodeStatus::default());
        let (outbox, mut responses) = outbox(status, mpsc::unbounded_channel().0);
        let frames = outbox.frames.clone();
        for _ in 0..ANSWERS_MAX - 1 {
            frames.send(1, ECHO);
        }
        outbox.say(ToEdge::Pong(Pong {}));
        // Records are bounded by windows; and what is taken makes room.
        frames.send(1, records());
        assert!(!outbox.overflowed());
        assert_eq!(responses.next().await.unwrap().unwrap().response, Some(ToEdge::Pong(Pong {})));
        assert!(matches!(responses.next().await.unwrap().unwrap().response, Some(ToEdge::Echo(_))));
        frames.send(1, ECHO);
        outbox.say(ToEdge::Pong(Pong {}));
        assert!(!outbox.overflowed());
        frames.send(1, ECHO);
        assert!(outbox.overflowed());
        // Its transport still hangs.
        outbox.end();
        assert!(responses.queues.lock().unwrap().is_none());
        outbox.closed().await;
        assert!(responses.next().await.is_none());
    }

    #[tokio::test]
    async fn a_status_that_nobody_took_is_replaced_by_the_next() {
        let (sender, status) = watch::channel(NodeStatus::default());
        let (outbox, mut responses) = outbox(status, mpsc::unbounded_channel().0);
        for draining in [false, true].repeat(ANSWERS_MAX) {
            sender.send_replace(NodeStatus { draining, ..NodeStatus::default() });
            outbox.tell_status();
        }
        outbox.say(ToEdge::Pong(Pong {}));
        let last = NodeStatus { draining: true, ..NodeStatus::default() };
        assert_eq!(responses.next().await.unwrap().unwrap().response, Some(ToEdge::Status(last)));
        assert_eq!(responses.next().await.unwrap().unwrap().response, Some(ToEdge::Pong(Pong {})));
        assert!(!outbox.overflowed());
        outbox.tell_status();
        assert!(matches!(responses.next().await.unwrap().unwrap().response, Some(ToEdge::Status(_))));
    }
}
