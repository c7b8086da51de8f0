//! What clients ask their edge for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_core::{End, SessionId};
use sluice_kafka::KafkaState;
use sluice_proto::v1;
use tokio::time::Instant;

use super::owners::Owners;
use super::stream::{Fate, Stream};
use super::way::Way;
use super::{Edge, SESSION_BITS};
use crate::error::Error;
use crate::peer::OwnerId;
use crate::peer::queue::Share;
use crate::session::Link;
use crate::subscription::Request;

/// Ranges that fit beside two windows, as in a client's inbox.
const RANGES_EXTRA: usize = 1_000;
/// However large a window is.
const RANGES_MAX: usize = 1 << 20;

impl Edge {
    pub(super) fn on_request(&mut self, request: Request) {
        match request {
            Request::Open { link, open } => self.on_open(link, open),
            Request::Input(link) => self.with(&link, |stream, owners, _| match stream.on_input(owners) {
                Ok(()) => Fate::Lives,
                Err(error) => stream.finish(End::Broken, Err(error)),
            }),
            Request::Drain(link) => self.with(&link, |stream, _, grace| {
                stream.drain(grace, v1::DrainReason::MaxAge);
                Fate::Lives
            }),
            Request::Close { link, end, error } => {
                if link.session().is_some_and(|id| self.streams.contains_key(&id.0)) {
                    self.with(&link, |stream, owners, _| match stream.on_input(owners) {
                        // What it said is still to be read.
                        Ok(()) if end == End::HalfClose && !stream.is_subscribed() => {
                            stream.close_when_subscribed(error);
                            Fate::Lives
                        }
                        Ok(()) => stream.close(end, error),
                        Err(error) => stream.finish(End::Broken, Err(error)),
                    });
                } else {
                    link.end(error.map_or(Ok(()), |error| Err(error.into())));
                }
            }
            // Streams ask for nothing else.
            other => self.settings.handle.send(other),
        }
    }

    pub(super) fn on_open(&mut self, link: Arc<Link>, open: sluice_core::Open) {
        if self.end_at.is_some() {
            return link.end(Err(Error::ShuttingDown.into()));
        }
        if let KafkaState::TopicMissing(topic) = self.settings.handle.state().kafka
            && !self.ever_owned
        {
            return link.end(Err(Error::TopicMissing(topic).into()));
        }
        if let Some(error) = self.missing_rights() {
            return link.end(Err(error.into()));
        }
        self.stream_numbers += 1;
        let number = self.stream_numbers;
        link.set_session(SessionId(number));
        if let Some(consumer) = open.consumer_id.clone()
            && let Some(mut old) = self.by_consumer.insert(consumer, number).and_then(|old| self.take(old))
        {
            old.supersede(link.profile.peer.clone());
        }
        let kept = open.consumer_id.as_ref().and_then(|consumer| self.kept.remove(consumer));
        let token = kept.map_or_else(|| crate::random::session_token().into(), |(token, _)| token);
        self.by_token.insert(token.clone(), number);
        let turn = usize::try_from(number).unwrap_or_default();
        let stream = Stream::new(link.clone(), open, token, self.greeting.clone(), turn, self.counts.clone());
        self.streams.insert(number, stream);
        self.seat(number);
        self.with(&link, |stream, _, _| {
            stream.greet_if_known();
            Fate::Lives
        });
        self.count();
    }

    /// Does something to a stream, and what follows from it.
    pub(super) fn with(&mut self, link: &Arc<Link>, act: impl FnOnce(&mut Stream, &mut Owners, Duration) -> Fate) {
        if let Some(session) = link.session() {
            self.with_stream(session.0, act);
        }
    }

    pub(super) fn with_stream(&mut self, number: u64, act: impl FnOnce(&mut Stream, &mut Owners, Duration) -> Fate) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let was_subscribed = stream.is_subscribed();
        let before = stream.delivered;
        let mut fate = act(stream, &mut self.owners, self.settings.grace);
        let [near, far] = stream.delivered;
        self.counts.delivered_local.fetch_add(near - before[0], Ordering::Relaxed);
        self.counts.delivered_relayed.fetch_add(far - before[1], Ordering::Relaxed);
        // What it said before it was subscribed waited for that.
        if fate == Fate::Lives
            && !was_subscribed
            && stream.is_subscribed()
            && let Err(error) = stream.on_input(&self.owners)
        {
            fate = stream.finish(End::Broken, Err(error));
        }
        if fate == Fate::Lives {
            fate = stream.close_if_it_waits();
        }
        if fate == Fate::Lives {
            stream.mind_drain(Instant::now());
        }
        if fate == Fate::Over {
            self.take(number);
            self.count();
        } else if stream.is_restless() {
            self.restless.insert(number);
        } else {
            self.restless.remove(&number);
        }
    }

    /// The stream is forgotten.
    pub(super) fn take(&mut self, number: u64) -> Option<Stream> {
        let stream = self.streams.remove(&number)?;
        self.restless.remove(&number);
        self.by_token.remove(&stream.token);
        if let Some(consumer) = &stream.open.consumer_id
            && self.by_consumer.get(consumer) == Some(&number)
        {
            self.by_consumer.remove(consumer);
        }
        if let Some(consumer) = &stream.open.consumer_id {
            let resume_timeout = Duration::from_millis(self.settings.handle.policy.resume_timeout_ms);
            self.kept.insert(consumer.clone(), (stream.token.clone(), Instant::now() + resume_timeout));
        }
        for session in &stream.sessions {
            self.sessions.remove(session);
        }
        Some(stream)
    }

    /// Opens sessions for a stream at owners where it has none.
    pub(super) fn seat(&mut self, number: u64) {
        let Some(stream) = self.streams.get_mut(&number).filter(|stream| stream.is_open()) else { return };
        for (id, owner) in self.owners.iter() {
            let standing = owner.standing();
            if !standing.owns || standing.draining || stream.seats.contains_key(&id) {
                continue;
            }
            self.session_numbers += 1;
            let session = (self.settings.index << SESSION_BITS) | self.session_numbers;
            let (at, way) = if id == OwnerId::SELF {
                let (token, profile) = (stream.token.clone(), stream.link.profile.clone());
                let link = Link::relayed(session, self.near.clone(), token, profile);
                (0, Way::Near { handle: self.settings.handle.clone(), link })
            } else {
                let pick = usize::try_from(number).unwrap_or_default() % owner.conns.len().max(1);
                let Some((at, conn)) = owner.conns.iter().nth(pick) else { continue };
                let records = usize::try_from(stream.window().max_records).unwrap_or(usize::MAX);
                let max = records.saturating_mul(2).saturating_add(RANGES_EXTRA).min(RANGES_MAX);
                (*at, Way::Far { conn: conn.clone(), share: Share::new(max) })
            };
            self.sessions.insert(session, (number, id));
            stream.seat(id, session, at, way);
        }
    }
}
