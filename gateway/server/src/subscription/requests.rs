//! What streams and operators ask of the driver.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_core::{Answer, End, Millis, Open, Opened, Rejection, Resumed, Window};
use sluice_kafka::{KafkaCommand, KafkaState};
use sluice_proto::v1::{self, consume_response::Response};

use super::driver::{Driver, Stopping};
use super::stuck::is_stuck;
use super::{PartitionSnapshot, Request, Seat, SessionSnapshot, Snapshot, TOKENS_MAX, drain_time};
use tokio::sync::oneshot;

use crate::error::Error;
use crate::session::{Frame, Input, Link, encode};

impl Driver {
    pub(super) fn on_request(&mut self, now: Millis, request: Request) {
        match request {
            Request::Open { link, open } => self.on_open(now, &link, open),
            Request::Input(link) => self.on_input(now, &link),
            Request::Drain(link) => self.on_drain(now, &link),
            Request::Close { link, end, error } => self.on_close(now, &link, end, error),
            Request::Settle { session, settlements, reply } => {
                if let Some(link) = self.seats.get(&session).and_then(|seat| seat.link.clone()) {
                    self.on_input(now, &link);
                }
                let known = self.seats.contains_key(&session).then_some(session);
                match self.engine.settle_unary(now, known, settlements) {
                    Answer::Now(rejections) => self.answer_unary(reply, rejections),
                    Answer::Later(ticket) => drop(self.unary.insert(ticket, reply)),
                }
            }
            Request::View(reply) => drop(reply.send(self.snapshot(now))),
            Request::Seek(targets, reply) => self.on_seek(targets, reply),
            Request::Kafka(command) => (self.kafka.send)(KafkaCommand::Seek(command)),
            Request::Wanted(wanted) => self.member.told(wanted),
            Request::SetPaused(pause, reply) => {
                if pause.at_ms > self.pause.at_ms {
                    self.pause = pause;
                    self.engine.set_paused(now, pause.paused);
                }
                let _ = reply.send(());
            }
            Request::Shutdown(deadline) => self.on_shutdown(now, deadline),
        }
    }

    fn on_open(&mut self, now: Millis, link: &Arc<Link>, open: Open) {
        if self.stopping.is_some() {
            return link.end(Err(Error::ShuttingDown.into()));
        }
        if let KafkaState::TopicMissing(topic) = &self.kafka_state
            && self.assigned.is_empty()
        {
            return link.end(Err(Error::TopicMissing(topic.clone()).into()));
        }
        if let Some(error) = self.missing_rights() {
            return link.end(Err(error.into()));
        }
        if let Some(by) = self.later_stream(link, &open) {
            return link.end(Err(Error::Superseded { by }.into()));
        }
        // What is still to be said to the stream that this one may supersede, answers above all, is not for this one.
        self.pull_outputs(now);
        let resumable = open.consumer_id.is_some();
        let opened = self.engine.open(now, open);
        let session = opened.session;
        link.set_session(session);
        let token = self.seat(&opened, link, resumable);
        if link.is_relayed() {
            let sequence = self.engine.sequence(session);
            return link.tell_edge(Frame::Opened { held: opened.held, sequence });
        }
        let subscribed = v1::Subscribed {
            session_id: token.to_string(),
            held: opened.held.into_iter().map(encode::leases).collect(),
            ack_timeout: Some(encode::duration(Duration::from_millis(opened.ack_timeout_ms))),
            session_timeout: Some(encode::duration(self.settings.session_timeout)),
            ordering: encode::ordering(self.engine.policy().ordering).into(),
            subscription: self.settings.name.to_string(),
            revision: sluice_proto::REVISION,
        };
        link.send(encode::frame(Response::Subscribed(subscribed)));
        tracing::debug!(subscription = %self.settings.name, session = session.0, peer = %link.profile.peer, "session opened");
    }

    /// The client whose stream has the session and subscribed after this one: an edge that was in the dark opens streams whose
    /// clients have moved on.
    fn later_stream(&self, link: &Link, open: &Open) -> Option<String> {
        let session = self.engine.session_of(open.consumer_id.as_deref()?)?;
        let current = self.seats.get(&session)?.link.as_ref()?;
        // The same stream by another connection: its age is not the same to the millisecond.
        if link.token.is_some() && current.token == link.token {
            return None;
        }
        let is_later = current.profile.subscribed_at > link.profile.subscribed_at;
        is_later.then(|| current.profile.peer.clone())
    }

    /// Gives the stream its session's place; the one that had it is told why it ends.
    fn seat(&mut self, opened: &Opened, link: &Arc<Link>, resumable: bool) -> Arc<str> {
        if let Some(seat) = self.seats.get_mut(&opened.session) {
            if let Some(old) = seat.link.replace(link.clone()) {
                debug_assert_eq!(opened.resumed, Resumed::Superseding, "a live stream is superseded, nothing else");
                let drained = old.drained.load(Ordering::Acquire);
                let by = link.profile.peer.clone();
                // An edge is told in any case: to it an end without a reason is this owner's.
                let planned = drained && !old.is_relayed();
                old.end(if planned { Ok(()) } else { Err(Error::Superseded { by }.into()) });
            }
            if let Some(token) = link.token.clone().filter(|token| !seat.tokens.contains(token)) {
                if seat.tokens.len() == TOKENS_MAX {
                    seat.tokens.pop_front().map(|oldest| self.registry.remove(&oldest));
                }
                self.registry.insert(token.clone(), (self.settings.name.clone(), opened.session));
                seat.tokens.push_back(token);
            }
            return seat.token();
        }
        let token = link.token.clone().unwrap_or_else(|| crate::random::session_token().into());
        self.registry.insert(token.clone(), (self.settings.name.clone(), opened.session));
        self.seats.insert(opened.session, Seat { link: Some(link.clone()), tokens: [token.clone()].into(), resumable });
        token
    }

    pub(super) fn answer_unary(&mut self, reply: oneshot::Sender<Vec<Rejection>>, rejections: Vec<Rejection>) {
        self.count_rejections(&rejections);
        // A caller that went away misses its answer and nothing else.
        let _ = reply.send(rejections);
    }

    /// Whether this stream is the one that its session has now. A superseded one is not, and what it says is void.
    fn is_current(&self, link: &Arc<Link>) -> bool {
        let seat = link.session().and_then(|session| self.seats.get(&session));
        seat.and_then(|seat| seat.link.as_ref()).is_some_and(|current| Arc::ptr_eq(current, link))
    }

    fn on_input(&mut self, now: Millis, link: &Arc<Link>) {
        let inputs = link.take_inputs();
        let Some(session) = link.session() else { return };
        if !self.is_current(link) {
            return;
        }
        for input in inputs {
            match input {
                Input::Window(window) => self.engine.window(now, session, window),
                Input::Grant { number, window, whole } => self.on_grant(now, link, number, window, whole),
                Input::Settle(settlements) => self.engine.settle(now, session, settlements),
            }
        }
    }

    /// The echo goes behind all that was dealt: nothing is dealt but when outputs are pulled, and those of before went out.
    fn on_grant(&mut self, now: Millis, link: &Arc<Link>, number: u64, window: Window, whole: bool) {
        let Some(session) = link.session() else { return };
        if whole {
            self.engine.window(now, session, window);
        } else {
            self.engine.window_part(now, session, window);
        }
        let (held_records, held_bytes) = self.engine.held(session);
        link.tell_edge(Frame::Echo { number, held_records, held_bytes });
    }

    fn on_drain(&mut self, now: Millis, link: &Arc<Link>) {
        let Some(session) = link.session().filter(|_| self.is_current(link)) else { return };
        link.drained.store(true, Ordering::Release);
        self.engine.drain_session(now, session);
        // To an edge it says that nothing more comes from here.
        link.send(encode::drain(self.settings.drain_grace, v1::DrainReason::MaxAge));
    }

    fn on_close(&mut self, now: Millis, link: &Arc<Link>, end: End, error: Option<Error>) {
        self.on_input(now, link);
        if let Some(session) = link.session().filter(|_| self.is_current(link)) {
            self.engine.close(now, session, end);
            // What the engine still says to it must come before its end.
            self.pull_outputs(now);
            self.unseat(session, end);
        }
        link.end(error.map_or(Ok(()), |error| Err(error.into())));
    }

    /// The stream's place is empty; the session's name is forgotten unless the engine keeps the session for a resume.
    fn unseat(&mut self, session: sluice_core::SessionId, end: End) {
        match self.seats.get_mut(&session) {
            Some(seat) if matches!(end, End::Broken | End::EdgeGone) && seat.resumable => seat.link = None,
            _ => self.forget_session(session),
        }
    }

    pub(super) fn forget_session(&mut self, session: sluice_core::SessionId) {
        if let Some(seat) = self.seats.remove(&session) {
            seat.tokens.iter().for_each(|token| drop(self.registry.remove(token)));
        }
    }

    fn on_shutdown(&mut self, now: Millis, deadline: Duration) {
        if self.stopping.is_some() {
            return;
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2);
        let (deadline_ms, drain_ms) = (millis(deadline), millis(drain_time(deadline)));
        self.stopping = Some(Stopping { drain_until: Millis(now.0 + drain_ms), end_at: Millis(now.0 + deadline_ms) });
        self.member.stop();
        for (session, seat) in &self.seats {
            self.engine.drain_session(now, *session);
            // Once: a stream that has reached its age is on its way already.
            if let Some(link) = seat.link.as_ref().filter(|link| !link.drained.swap(true, Ordering::AcqRel)) {
                link.send(encode::drain(Duration::from_millis(drain_ms), v1::DrainReason::Shutdown));
            }
        }
    }

    fn snapshot(&self, now: Millis) -> Snapshot {
        let sessions = self.engine.sessions();
        let holder_of = |session| {
            let seat = self.seats.get(&session)?;
            let view = sessions.iter().find(|view| view.session == session)?;
            Some((seat.token(), view.consumer_id.clone()))
        };
        let partitions: Vec<_> = self
            .engine
            .partitions(now)
            .into_iter()
            .map(|view| PartitionSnapshot {
                watermarks: self.watermarks.get(&view.partition).copied(),
                holder: view.oldest_undone_holder.and_then(holder_of),
                stuck: is_stuck(&view, self.engine.policy(), self.settings.stuck_after_ms),
                view,
            })
            .collect();
        let sessions = sessions.into_iter().filter_map(|view| {
            let seat = self.seats.get(&view.session)?;
            let live = seat.link.as_ref().map(|link| (link.profile.clone(), link.last_seen()));
            Some(SessionSnapshot { view, token: seat.token(), live })
        });
        Snapshot {
            stats: self.engine.stats(),
            partitions,
            sessions: sessions.collect(),
            bytes_held: self.engine.bytes_held(),
            queued_bytes: self.kafka.gate.queued_bytes.load(Ordering::Relaxed) as u64,
            ready_bytes: self.engine.ready_bytes(),
            remembered: self.engine.remembered(),
            letters_pending: self.letters.pending,
            letters_pending_bytes: self.letters.pending_bytes,
            letters_failing: self.letters.failing.is_some(),
            counts: self.counts,
        }
    }
}
