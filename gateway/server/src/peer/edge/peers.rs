//! What owners and other nodes say to an edge.

use std::time::Duration;

use sluice_core::{End, Epoch, TopicPartition};
use sluice_kafka::{KafkaState, MissingRights};
use tokio::time::Instant;

use super::owners::Standing;
use super::stream::{Fate, Seat, Stream};
use super::{Edge, FromPeer};
use crate::error::Error;
use crate::peer::OwnerId;
use crate::peer::wire::{self, FromOwner};
use crate::session::Frame;
use crate::subscription::Owned;

/// What splitting all windows anew may cost: the more streams there are, the less often it is done for a backlog alone.
const SPLIT_GAP: Duration = Duration::from_micros(20);

impl Edge {
    pub(super) fn on_frame(&mut self, session: u64, frame: Frame) {
        if let Some(said) = wire::from_frame(frame) {
            self.on_session(session, said);
        }
    }

    pub(super) fn on_session(&mut self, session: u64, said: FromOwner) {
        let Some((number, owner)) = self.sessions.get(&session).copied() else { return };
        if matches!(said, FromOwner::Ended(_)) {
            self.sessions.remove(&session);
        }
        let is_current = |stream: &Stream| stream.seats.get(&owner).is_some_and(|seat| seat.session == session);
        self.with_stream(
            number,
            |stream, owners, _| {
                if is_current(stream) { stream.on_owner(owner, said, owners) } else { Fate::Lives }
            },
        );
    }

    pub(super) fn on_owned(&mut self, owned: &Owned) {
        let places = owned.partitions.iter().map(|one| ((one.partition.clone(), one.epoch), one.backlog)).collect();
        self.owners.set_places(OwnerId::SELF, places);
        self.owners.entry(OwnerId::SELF).missing = owned.missing.clone();
        self.reconcile();
        self.tell_of_missing_rights();
    }

    pub(super) fn on_peer(&mut self, said: FromPeer) {
        match said {
            FromPeer::Session { session, said } => self.on_session(session, said),
            FromPeer::Up { owner, address, since, number, conn } => {
                self.members.up(owner, address, since);
                self.owners.entry(owner).conns.insert(number, conn);
                self.seat_all();
            }
            FromPeer::Down { owner, number } => {
                self.owners.entry(owner).conns.remove(&number);
                self.lose(owner, Some(number));
                self.seat_all();
            }
            FromPeer::Gone(owner) => {
                let drained = self.owners.remove(owner).is_some_and(|known| known.draining);
                self.members.gone(owner, drained, Instant::now());
                self.lose(owner, None);
                self.reconcile();
            }
            FromPeer::Status { owner, status, draining } => {
                let of = self.owners.entry(owner);
                (of.draining, of.streams, of.member) = (draining, status.streams, status.member);
                of.away = status.away;
                let sluice_proto::peer::v1::MissingRights { group, topics, whole } = status.missing.unwrap_or_default();
                of.missing = MissingRights { group: (!group.is_empty()).then_some(group), topics, whole };
                let place = |one: sluice_proto::peer::v1::Owned| {
                    let partition = TopicPartition::new(one.topic, one.partition);
                    ((partition, Epoch(one.epoch)), one.backlog)
                };
                self.owners.set_places(owner, status.partitions.into_iter().map(place).collect());
                self.reconcile();
                self.tell_of_missing_rights();
            }
        }
    }

    /// Why nobody can be served, where Kafka does not let any node read what the subscription is of.
    pub(super) fn missing_rights(&self) -> Option<Error> {
        let subscription = || self.greeting.subscription.to_string();
        self.owners
            .missing()
            .map(|missing| Error::RightsMissing { subscription: subscription(), missing: missing.clone() })
    }

    /// Those who would wait for records that cannot come are told. A stream that drains ends by itself.
    fn tell_of_missing_rights(&mut self) {
        if self.streams.is_empty() {
            return;
        }
        let Some(error) = self.missing_rights() else { return };
        for number in self.streams.keys().copied().collect::<Vec<_>>() {
            self.with_stream(number, |stream, _, _| {
                if stream.is_open() { stream.finish(End::Drained, Err(error.clone())) } else { Fate::Lives }
            });
        }
    }

    /// Likewise where the topic is not there. Not where somebody has owned something: the topic may be on its way back.
    pub(super) fn tell_of_missing_topic(&mut self, kafka: KafkaState) {
        let KafkaState::TopicMissing(topic) = kafka else { return };
        if self.ever_owned {
            return;
        }
        for number in self.streams.keys().copied().collect::<Vec<_>>() {
            self.with_stream(number, |stream, _, _| {
                let error = Error::TopicMissing(topic.clone());
                if stream.is_open() { stream.finish(End::Drained, Err(error)) } else { Fate::Lives }
            });
        }
    }

    /// Sessions at an owner, of one connection or of all, are gone.
    pub(super) fn lose(&mut self, owner: OwnerId, conn: Option<usize>) {
        let lost = |seat: &Seat| conn.is_none_or(|number| seat.conn == number);
        let hit = |(number, stream): (&u64, &Stream)| {
            stream.seats.get(&owner).filter(|seat| lost(seat)).map(|seat| (*number, seat.session))
        };
        for (number, session) in self.streams.iter().filter_map(hit).collect::<Vec<_>>() {
            self.sessions.remove(&session);
            self.with_stream(number, |stream, _, _| {
                stream.lose(owner);
                if stream.is_draining() || stream.is_open() { Fate::Lives } else { stream.tick(Instant::now()) }
            });
        }
    }

    /// Who owns what has changed: sessions are opened where there are none, and windows split anew.
    pub(super) fn reconcile(&mut self) {
        let standings = self.owners.standings();
        self.ever_owned |= standings.values().any(|standing| standing.owns);
        self.splits_late = false;
        if standings == self.standings {
            return;
        }
        let moved = |(a, b): ((&OwnerId, &Standing), (&OwnerId, &Standing))| {
            a.0 != b.0 || Standing { active: b.1.active, ..*a.1 } != *b.1
        };
        let moved = standings.len() != self.standings.len() || standings.iter().zip(&self.standings).any(moved);
        let gap = SPLIT_GAP * u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
        if !moved && self.split_at.elapsed() < gap {
            self.splits_late = true;
            return;
        }
        self.split_at = Instant::now();
        self.standings = standings;
        if moved {
            self.seat_all();
        }
        let all: Vec<u64> = self.streams.keys().copied().collect();
        for number in all {
            self.with_stream(number, |stream, owners, _| {
                stream.stand(owners);
                Fate::Lives
            });
        }
    }

    pub(super) fn seat_all(&mut self) {
        let all: Vec<u64> = self.streams.keys().copied().collect();
        all.into_iter().for_each(|number| self.seat(number));
    }
}
