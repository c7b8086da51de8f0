//! The clients of the simulation: each works as it likes, over a connection with delays, and some misbehave.

use std::collections::{BTreeMap, VecDeque};

use sluice_core::{
    Batch, End, Epoch, Leases, Open, Outcome, Rejection, SessionId, Settlement, Settlements, TopicPartition,
};

use super::Sim;
use crate::support::client;
use crate::support::model::covers;
use crate::support::rng::Rng;
use crate::support::world::Lease;

/// One worker process.
#[derive(Debug)]
pub(super) struct Person {
    consumer_id: Option<String>,
    window: u32,
    /// In a hundred: how often a record fails, how often it hangs on one for long, how often it dies.
    fails: u64,
    hangs: u64,
    dies: u64,
    /// The node and session it is connected to.
    pub(super) at: Option<(usize, SessionId)>,
    last_at: Option<(usize, SessionId)>,
    leases: Vec<Lease>,
    seen: u64,
    /// Frames on their way to the client, and from it.
    inbox: VecDeque<(u64, Vec<Batch>)>,
    outbox: VecDeque<Settlements>,
    /// Acks of durable requests that wait for their answer.
    asked: BTreeMap<u64, Vec<Lease>>,
    requests: u64,
    idle_until: u64,
}

impl Person {
    pub(super) fn new(n: u64, faults: bool, rng: &mut Rng) -> Self {
        let bad = |rng: &mut Rng, most: u64| if faults { rng.below(most) } else { 0 };
        Self {
            consumer_id: (faults && rng.chance(60)).then(|| format!("worker-{n}")),
            window: 1 + u32::try_from(rng.below(20)).expect("small"),
            fails: bad(rng, 20),
            hangs: bad(rng, 4),
            dies: bad(rng, 3),
            at: None,
            last_at: None,
            leases: Vec::new(),
            seen: 0,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            asked: BTreeMap::new(),
            requests: 0,
            idle_until: 0,
        }
    }

    pub(super) fn calm_down(&mut self) {
        (self.fails, self.hangs, self.dies) = (0, 0, 0);
        self.idle_until = 0;
        self.window = self.window.max(5);
    }

    /// A frame leaves the node for this client.
    pub(super) fn receive(&mut self, sequence: u64, batches: &[Batch]) {
        self.inbox.push_back((sequence, batches.to_vec()));
    }

    fn read(&mut self, rng: &mut Rng) {
        while !self.inbox.is_empty() && rng.chance(70) {
            let Some((sequence, batches)) = self.inbox.pop_front() else { return };
            self.seen = sequence;
            for batch in batches {
                self.leases.extend(batch.records.iter().map(|d| Lease {
                    partition: batch.partition.clone(),
                    epoch: batch.epoch,
                    offset: d.record.offset,
                    frame: sequence,
                }));
            }
        }
    }

    /// The stream is gone, and what was on its way with it.
    fn cut(&mut self) {
        self.last_at = self.at.take();
        self.inbox.clear();
        self.outbox.clear();
        self.asked.clear();
        if self.consumer_id.is_none() {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.leases.clear();
        self.seen = 0;
        self.last_at = None;
    }
}

impl Sim {
    /// A node died: its clients notice, and come back elsewhere.
    pub(super) fn hang_up(&mut self, n: usize) {
        for person in self.people.iter_mut().filter(|p| p.at.is_some_and(|(at, _)| at == n)) {
            person.cut();
        }
        self.ghosts.retain(|(_, at, _)| *at != n);
    }

    pub(super) fn revoked(&mut self, n: usize, session: SessionId, leases: &Leases) {
        if let Some(person) = self.people.iter_mut().find(|p| p.at == Some((n, session))) {
            let revoked = std::slice::from_ref(leases);
            person.leases.retain(|l| !covers(revoked, &l.partition, l.epoch, l.offset));
        }
    }

    pub(super) fn settled(&mut self, n: usize, session: SessionId, request_id: u64, rejections: &[Rejection]) {
        let Some(person) = self.people.iter_mut().find(|p| p.at == Some((n, session))) else { return };
        let rejected: Vec<Leases> = rejections.iter().map(|r| r.leases.clone()).collect();
        for lease in person.asked.remove(&request_id).into_iter().flatten() {
            if !covers(&rejected, &lease.partition, lease.epoch, lease.offset) {
                self.durable.insert((lease.partition, lease.offset));
            }
        }
    }

    /// A node notices late that a stream is gone, unless its client came back to it meanwhile.
    fn bury_ghosts(&mut self) {
        let (due, later) = std::mem::take(&mut self.ghosts).into_iter().partition(|(due, ..)| *due <= self.now);
        self.ghosts = later;
        let due: Vec<(u64, usize, SessionId)> = due;
        for (due, n, session) in due {
            if self.people.iter().any(|p| p.at == Some((n, session))) {
                continue;
            }
            if self.nodes[n].away.is_some() {
                self.ghosts.push((due + 50, n, session));
                continue;
            }
            self.nodes[n].driver.model.now = self.now;
            self.nodes[n].driver.close(session, End::Broken);
            self.absorb(n);
        }
    }

    pub(super) fn run_people(&mut self, trouble: bool) {
        self.bury_ghosts();
        for i in 0..self.people.len() {
            if self.people[i].at.is_none() {
                self.connect(i);
                continue;
            }
            let Some((n, session)) = self.people[i].at else { continue };
            if self.nodes[n].away.is_some() {
                continue;
            }
            self.nodes[n].driver.model.now = self.now;
            self.people[i].read(&mut self.rng);
            self.work(i);
            self.carry(i, n, session);
            if trouble && self.people[i].at.is_some() {
                self.misbehave(i, n, session);
            }
        }
    }

    fn connect(&mut self, i: usize) {
        let running: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].away.is_none()).collect();
        // Mostly back to where it was, where its leases wait.
        let back = self.people[i].last_at.map(|(n, _)| n).filter(|n| running.contains(n) && self.rng.chance(70));
        let Some(n) = back.or_else(|| self.rng.pick(&running).copied()) else { return };
        let person = &mut self.people[i];
        let holding: Vec<Leases> = person
            .leases
            .iter()
            .map(|l| client::leases(&l.partition, l.epoch, vec![sluice_core::OffsetRange::one(l.offset)]))
            .collect();
        let open = Open {
            consumer_id: person.consumer_id.clone(),
            window: Some(client::window(person.window)),
            holding,
            seen: person.seen,
            ..Open::default()
        };
        self.nodes[n].driver.model.now = self.now;
        let opened = self.nodes[n].driver.open(open);
        let person = &mut self.people[i];
        person.at = Some((n, opened.session));
        person.leases.retain(|l| covers(&opened.held, &l.partition, l.epoch, l.offset));
        self.absorb(n);
    }

    /// It settles some of what it has received.
    fn work(&mut self, i: usize) {
        let person = &mut self.people[i];
        if person.idle_until > self.now || person.leases.is_empty() || (!self.calm && !self.rng.chance(60)) {
            return;
        }
        if self.rng.below(100) < person.hangs {
            person.idle_until = self.now + self.rng.below(900);
            return;
        }
        let some = 1 + usize::try_from(self.rng.below(person.leases.len() as u64)).expect("few");
        let count = if self.calm { person.leases.len() } else { some };
        if self.rng.chance(30) {
            // Not in the order of their coming.
            person.leases.reverse();
        }
        let chosen: Vec<Lease> = person.leases.drain(..count).collect();
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for lease in chosen {
            if self.rng.below(100) < person.fails { bad.push(lease) } else { good.push(lease) }
        }
        let durable = self.rng.chance(20);
        let outcome = match self.rng.below(4) {
            0 => Outcome::Release,
            1 => Outcome::Retry { delay_ms: None, reason: String::new() },
            _ => client::retry_now(),
        };
        if !bad.is_empty() {
            self.write(i, bad, outcome, false, &good);
        }
        if !good.is_empty() {
            self.write(i, good, Outcome::Ack, durable, &[]);
        }
    }

    /// Ranges are coalesced over everything between that this client holds no more, as rule 2 allows.
    fn write(&mut self, i: usize, leases: Vec<Lease>, outcome: Outcome, durable: bool, keeps: &[Lease]) {
        let person = &mut self.people[i];
        let mut by: BTreeMap<(TopicPartition, i64), Vec<i64>> = BTreeMap::new();
        for lease in &leases {
            by.entry((lease.partition.clone(), lease.epoch.0)).or_default().push(lease.offset);
        }
        let mut frame = Settlements { seen: person.seen, ..Settlements::default() };
        for ((tp, epoch), offsets) in by {
            let all = person.leases.iter().chain(keeps);
            let still: Vec<_> = all.filter(|l| l.partition == tp && l.epoch.0 == epoch).collect();
            let free = |a: i64, b: i64| !still.iter().any(|l| (a..=b).contains(&l.offset));
            let mut ranges: Vec<sluice_core::OffsetRange> = Vec::new();
            for range in client::coalesce(&offsets, 1) {
                match ranges.last_mut() {
                    Some(last) if range.first - last.last < 6 && free(last.last, range.first) => last.last = range.last,
                    _ => ranges.push(range),
                }
            }
            let leases = client::leases(&tp, Epoch(epoch), ranges);
            frame.settlements.push(Settlement { leases, outcome: outcome.clone() });
        }
        if outcome == Outcome::Ack {
            self.acked.extend(leases.iter().map(|l| (l.partition.clone(), l.offset)));
        }
        person.requests += 1;
        if durable {
            (frame.request_id, frame.durable) = (person.requests, true);
            person.asked.insert(person.requests, leases);
        }
        person.outbox.push_back(frame);
    }

    /// Frames reach the node, in order, some later than others.
    fn carry(&mut self, i: usize, n: usize, session: SessionId) {
        while self.rng.chance(80) {
            let Some(frame) = self.people[i].outbox.pop_front() else { return };
            self.nodes[n].driver.settle(session, frame);
            self.absorb(n);
        }
    }

    fn misbehave(&mut self, i: usize, n: usize, session: SessionId) {
        let dies = self.people[i].dies;
        if self.rng.below(1_000) >= dies * 10 {
            return;
        }
        let driver = &mut self.nodes[n].driver;
        match self.rng.below(4) {
            0 => {
                driver.close(session, End::HalfClose);
                self.people[i].cut();
                self.people[i].forget();
            }
            1 => {
                // Killed: what it knew is gone, its name is not.
                driver.close(session, End::Broken);
                self.people[i].cut();
                self.people[i].forget();
            }
            2 => {
                // The second stream comes before the first one's end was seen.
                self.people[i].cut();
                self.ghosts.push((self.now + 300, n, session));
            }
            _ => {
                driver.close(session, End::Broken);
                self.people[i].cut();
            }
        }
        self.absorb(n);
    }
}
