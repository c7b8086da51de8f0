//! Where the frames of sessions go that an edge relays.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Frame;

/// Cheap to clone. Never waits.
#[derive(Debug, Clone)]
pub(crate) struct EdgeFrames {
    frames: mpsc::UnboundedSender<(u64, Frame)>,
    /// `None`: the edge is of this process, and takes everything at once.
    answers: Option<Answers>,
}

/// What waits for a connection to take it and is no record: these are bounded by the windows of their sessions.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    waiting: Arc<AtomicUsize>,
    max: usize,
    /// More waits than may.
    pub(crate) over: CancellationToken,
}

// === impl EdgeFrames ===

impl EdgeFrames {
    pub(crate) fn near(frames: mpsc::UnboundedSender<(u64, Frame)>) -> Self {
        Self { frames, answers: None }
    }

    pub(crate) fn far(frames: mpsc::UnboundedSender<(u64, Frame)>, answers: Answers) -> Self {
        Self { frames, answers: Some(answers) }
    }

    /// To a connection that is over, or is to be given up, it goes nowhere.
    pub(crate) fn send(&self, session: u64, frame: Frame) {
        if self.answers.as_ref().is_none_or(|answers| answers.put(frame.answers())) {
            let _ = self.frames.send((session, frame));
        }
    }

    /// Until nobody takes them any more.
    pub(crate) async fn closed(&self) {
        self.frames.closed().await;
    }
}

// === impl Answers ===

impl Answers {
    pub(crate) fn new(max: usize) -> Self {
        Self { waiting: Arc::default(), max, over: CancellationToken::new() }
    }

    /// Whether there is room for so many; else the connection is over.
    pub(crate) fn put(&self, answers: usize) -> bool {
        if answers > 0 && self.waiting.fetch_add(answers, Ordering::AcqRel) + answers > self.max {
            self.over.cancel();
        }
        !self.over.is_cancelled()
    }

    pub(crate) fn taken(&self, answers: usize) {
        self.waiting.fetch_sub(answers, Ordering::AcqRel);
    }
}
