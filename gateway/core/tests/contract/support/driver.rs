//! Feeds the engine and the model alike, pulls every output, and checks after each step.

use std::fmt::Write as _;

use sluice_core::{
    Answer, Assignment, CommitError, End, Engine, Epoch, LetterError, Millis, NextOffset, Open, Opened, Output, Policy,
    Record, Restored, RevokeReason, SessionId, Settlements, TopicPartition, Window,
};

use crate::support::model::{Model, Part, Snapshot, State};
use crate::support::plant::Plant;

/// More outputs than this after one input: the engine never comes to rest.
const OUTPUTS_MAX: usize = 100_000;
/// Lines of the story that a failure prints.
const STORY_LINES: usize = 60;

/// One engine, its model, and what came out since the caller last looked.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) engine: Engine,
    pub(crate) model: Model,
    pub(crate) out: Vec<Output>,
    /// All that came out, if `taping`, until the caller takes it.
    pub(crate) tape: Vec<Output>,
    /// Compare what operators are shown with the model; off where the outputs alone must betray a bug.
    pub(crate) views: bool,
    /// Panic at the first breach; off where breaches are what is looked for.
    pub(crate) strict: bool,
    /// Keep the story that a failure prints.
    pub(crate) telling: bool,
    /// Keep the tape.
    pub(crate) taping: bool,
    plant: Plant,
    /// Commits whose metadata was cut, as of the last step.
    cuts: u64,
    story: Vec<String>,
}

impl Driver {
    pub(crate) fn new(policy: Policy, seed: u64) -> Self {
        Self {
            engine: Engine::new(policy.clone(), seed),
            model: Model::new(policy),
            out: Vec::new(),
            tape: Vec::new(),
            views: true,
            strict: true,
            telling: true,
            taping: false,
            plant: Plant::Nothing,
            cuts: 0,
            story: Vec::new(),
        }
    }

    pub(crate) fn with_plant(policy: Policy, plant: Plant) -> Self {
        let engine = Engine::new(plant.policy(policy.clone()), 1);
        Self { engine, views: false, strict: false, plant, ..Self::new(policy, 1) }
    }

    pub(crate) fn now(&self) -> Millis {
        Millis(self.model.now)
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.telling {
            self.story.push(format!("{:>7} {}", self.model.now, line()));
        }
    }

    // === inputs ===

    pub(crate) fn assigned(&mut self, assignment: Assignment, stored: Option<&Snapshot>) -> Restored {
        self.tell(|| format!("assigned {assignment:?}"));
        self.model.assigned(&assignment, stored);
        let restored = self.engine.assigned(self.now(), assignment);
        self.pull();
        restored
    }

    pub(crate) fn records(&mut self, tp: &TopicPartition, epoch: Epoch, records: Vec<Record>) {
        let offsets: Vec<_> = records.iter().map(|r| r.offset).collect();
        self.tell(|| format!("records {tp} {epoch:?} {offsets:?}"));
        self.model.records(tp, epoch, &records);
        self.engine.records(self.now(), tp, epoch, records);
        self.pull();
    }

    pub(crate) fn position(&mut self, tp: &TopicPartition, epoch: Epoch, next: NextOffset) {
        self.tell(|| format!("position {tp} {next:?}"));
        self.model.position(tp, epoch, next);
        self.engine.position(self.now(), tp, epoch, next);
        self.pull();
    }

    pub(crate) fn revoking(&mut self, partitions: &[TopicPartition], deadline: Millis) {
        self.tell(|| format!("revoking {partitions:?} until {deadline:?}"));
        self.model.revoking(partitions, deadline);
        self.engine.revoking(self.now(), partitions, deadline);
        self.pull();
    }

    pub(crate) fn lost(&mut self, partitions: &[TopicPartition], reason: RevokeReason) {
        self.tell(|| format!("lost {partitions:?} {reason:?}"));
        self.model.lost(partitions, reason);
        self.engine.lost(self.now(), partitions, reason);
        self.pull();
    }

    pub(crate) fn commit_result(&mut self, tp: &TopicPartition, epoch: Epoch, result: Result<NextOffset, CommitError>) {
        self.tell(|| format!("commit_result {tp} {epoch:?} {result:?}"));
        self.model.commit_result(tp, epoch, result);
        self.engine.commit_result(self.now(), tp, epoch, result);
        self.pull();
    }

    pub(crate) fn dead_letter_result(
        &mut self,
        tp: &TopicPartition,
        epoch: Epoch,
        offset: i64,
        result: Result<(), LetterError>,
    ) {
        self.tell(|| format!("dead_letter_result {tp} {epoch:?} {offset} {result:?}"));
        self.model.letter_result(tp, epoch, offset, result);
        self.engine.dead_letter_result(self.now(), tp, epoch, offset, result);
        self.pull();
    }

    pub(crate) fn commit_rewound(&mut self, tp: &TopicPartition) {
        self.tell(|| format!("commit_rewound {tp}"));
        self.model.rewound(tp);
        self.engine.commit_rewound(self.now(), tp);
        self.pull();
    }

    pub(crate) fn open(&mut self, open: Open) -> Opened {
        let opened = self.engine.open(self.now(), self.plant.open(open.clone(), &self.model));
        self.tell(|| format!("{open:?} → {opened:?}"));
        self.model.opened(&open, &opened);
        self.pull();
        opened
    }

    pub(crate) fn window(&mut self, session: SessionId, window: Window) {
        self.tell(|| format!("window {session:?} {window:?}"));
        self.model.window(session, window);
        self.engine.window(self.now(), session, window);
        self.pull();
    }

    pub(crate) fn settle(&mut self, session: SessionId, frame: Settlements) {
        self.tell(|| format!("settle {session:?} {frame:?}"));
        if let Some(sent) = self.plant.settlements(frame.clone(), &self.model) {
            self.engine.settle(self.now(), session, sent);
        }
        self.model.settle_stream(session, &frame);
        self.pull();
    }

    pub(crate) fn settle_unary(&mut self, session: Option<SessionId>, frame: Settlements) {
        let answer = self.engine.settle_unary(self.now(), session, frame.clone());
        self.tell(|| format!("settle_unary {session:?} {frame:?} → {answer:?}"));
        let Some(session) = session.filter(|s| self.model.sessions.contains_key(s)) else {
            if answer.now().is_none_or(|rejections| rejections.is_empty()) && !frame.settlements.is_empty() {
                self.model.broken("a unary Settle of an unknown session was not rejected");
            }
            return self.pull();
        };
        let owed = self.model.settle(session, &frame, true);
        match answer {
            Answer::Now(rejections) => self.model.check_whole_answer(&owed, &rejections, "unary"),
            Answer::Later(_) if !frame.durable => {
                self.model.broken("a unary Settle is answered later, and is not durable")
            }
            Answer::Later(ticket) => drop(self.model.tickets.insert(ticket, owed)),
        }
        self.pull();
    }

    pub(crate) fn drain_session(&mut self, session: SessionId) {
        self.tell(|| format!("drain_session {session:?}"));
        if let Some(s) = self.model.sessions.get_mut(&session) {
            s.draining = true;
        }
        self.engine.drain_session(self.now(), session);
        self.pull();
    }

    pub(crate) fn close(&mut self, session: SessionId, end: End) {
        self.tell(|| format!("close {session:?} {end:?}"));
        self.model.close(session, end);
        self.engine.close(self.now(), session, end);
        self.pull();
    }

    pub(crate) fn set_paused(&mut self, paused: bool) {
        self.tell(|| format!("set_paused {paused}"));
        self.model.paused = paused;
        self.engine.set_paused(self.now(), paused);
        self.pull();
    }

    /// Lets time go on without the engine hearing of it.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.model.now += ms;
    }

    pub(crate) fn tick(&mut self) {
        self.tell(|| "tick".into());
        self.model.tick();
        self.engine.tick(self.plant.tick(self.now()));
        self.pull();
        self.model.check_commits_given();
        self.check_wake();
        self.fail_if_broken();
    }

    pub(crate) fn advance(&mut self, ms: u64) {
        self.pass(ms);
        self.tick();
    }

    // === outputs ===

    fn pull(&mut self) {
        for _ in 0..OUTPUTS_MAX {
            let cut = self.engine.stats().metadata_truncated > self.cuts;
            let Some(output) = self.engine.poll_output(self.now()) else {
                self.cuts = self.engine.stats().metadata_truncated;
                self.check();
                return;
            };
            self.plant.meddle(&mut self.engine, &output, self.model.now);
            for output in self.plant.output(output, &self.model) {
                self.tell(|| format!("    → {}", brief(&output)));
                self.hear(&output, cut);
                if self.taping {
                    self.tape.push(output.clone());
                }
                self.out.push(output);
            }
        }
        self.model.broken("the engine gives outputs without end");
        self.fail_if_broken();
    }

    /// `cut`: a commit among these outputs left something out.
    fn hear(&mut self, output: &Output, cut: bool) {
        let model = &mut self.model;
        match output {
            Output::Deliver { session, sequence, batches } => model.delivered(*session, *sequence, batches),
            Output::Settled { session, request_id, rejections } => model.settled(*session, *request_id, rejections),
            Output::Revoked { session, leases, reason } => model.revoked(*session, leases, *reason),
            Output::Committed { session, partition, offset } => model.committed(*session, partition, *offset),
            Output::Commit { partition, epoch, offset, metadata } => {
                model.committing(partition, *epoch, *offset, metadata, cut);
            }
            Output::Drained { partition } => model.drained(partition),
            Output::Hold { partition } => model.hold(partition, None),
            Output::Unhold { partition, next } => model.hold(partition, Some(*next)),
            Output::SettledUnary { ticket, rejections } => match model.tickets.remove(ticket) {
                Some(owed) => model.check_whole_answer(&owed, rejections, "unary, later"),
                None => model.broken(format!("{ticket:?} was not asked for, or answered twice")),
            },
            Output::DeadLetter { partition, epoch, letter } => model.letter_written(partition, *epoch, letter),
            Output::Rest(_) => {}
            Output::Gone { session } => {
                if !model.gone.remove(session) {
                    model.broken(format!("{session:?} is said to be gone, and is not"));
                }
            }
        }
    }

    fn check(&mut self) {
        self.model.check_notices_given();
        self.model.check_answers_given();
        self.model.check_nothing_starves();
        self.model.check_letters_written();
        for session in std::mem::take(&mut self.model.gone) {
            self.model.broken(format!("{session:?} is gone, and nobody was told"));
        }
        if let Err(broken) = self.engine.check() {
            self.model.broken(format!("the engine finds itself broken: {broken}"));
        }
        if self.views {
            self.check_views();
        }
        self.fail_if_broken();
    }

    /// After a tick and all outputs, the engine asks to be woken later than now, and in time for what is due.
    fn check_wake(&mut self) {
        if self.plant != Plant::Nothing {
            return;
        }
        let wake = self.engine.wake_at();
        if let Some(at) = wake.filter(|w| *w <= self.now()) {
            self.model.broken(format!("wake_at is {at:?} right after a tick at {:?}", self.now()));
        }
        let slots = self.model.parts.values().flat_map(|p| p.slots.values());
        let leases = slots.filter_map(|s| match s.state {
            State::Leased { deadline, .. } => Some(deadline),
            _ => None,
        });
        let resumes = self.model.sessions.values().filter_map(|s| s.broken);
        let fences = self.model.parts.values().filter(|p| !p.fenced && p.leased() > 0).filter_map(|p| p.revoking);
        // One that has no place waits for an answer, not for a time.
        let places = self.model.policy.dead_letters_in_flight_max;
        let in_flight =
            |p: &Part| p.slots.values().filter(|s| matches!(s.state, State::Letter { in_flight: true, .. })).count();
        let slots = self.model.parts.values().filter(|p| in_flight(p) < places).flat_map(|p| p.slots.values());
        let letters = slots.filter_map(|s| match s.state {
            State::Letter { in_flight: false, write_by, .. } if write_by > self.model.now => Some(write_by),
            _ => None,
        });
        let slots = self.model.parts.values().filter(|p| !p.fenced).flat_map(|p| p.slots.values());
        let deaths = slots.filter_map(|s| match s.state {
            State::Undecided { until, .. } => Some(until),
            _ => None,
        });
        let due = leases.chain(resumes).chain(fences).chain(letters).chain(deaths).min();
        if let Some(due) = due.filter(|due| wake.is_none_or(|w| w.0 > *due)) {
            self.model.broken(format!("something is due at {due}, wake_at is {wake:?}"));
        }
    }

    /// What operators are shown agrees with the model.
    fn check_views(&mut self) {
        let model = &self.model;
        let ordering = model.policy.ordering;
        let mut wrong = String::new();
        for view in self.engine.partitions(self.now()) {
            let Some(part) = model.parts.get(&view.partition) else {
                let _ = writeln!(wrong, "a view of {}, which is not assigned", view.partition);
                continue;
            };
            let unsure = part.slots.values().any(|s| s.state == State::Unsure);
            let restored = part.restored.done.range(part.next..).next().is_some();
            if unsure || restored || part.revoking.is_some() {
                continue;
            }
            let frontier = part.frontier();
            let count = |wanted: fn(&State) -> bool| {
                part.slots.range(frontier..).filter(|(_, s)| wanted(&s.state)).count() as u64
            };
            let idle = count(|s| matches!(s, State::Idle { .. } | State::Undecided { .. }));
            let pairs = [
                ("committable", view.committable.0, frontier),
                ("next", view.next.0, part.next),
                ("leased", to_i64(view.leased), to_i64(part.leased() as u64)),
                ("ready + waiting", to_i64(view.ready + view.waiting_retry + view.lane_waiting), to_i64(idle)),
                ("dead letters", to_i64(view.dead_letters_pending), to_i64(part.letters() as u64)),
                ("done above", to_i64(view.done_above_frontier), to_i64(count(|s| *s == State::Done))),
                ("span", to_i64(view.span), to_i64(count(|_| true))),
            ];
            for (what, shown, should) in pairs.iter().filter(|(_, a, b)| a != b) {
                let _ = writeln!(wrong, "{}: {what} is shown as {shown}, should be {should}", view.partition);
            }
            // One that was given up before its turn waits for its time first: when that is, jitter decides.
            let behind = part.turns(ordering).behind;
            let of = |wanted: &dyn Fn(u64, u64) -> bool| {
                let slots = behind.keys().map(|offset| &part.slots[offset].state);
                slots
                    .filter(|s| matches!(s, State::Idle { not_before, ready_by } if wanted(*not_before, *ready_by)))
                    .count()
            };
            let (least, most) = (of(&|_, by| by <= model.ticked), of(&|from, _| from <= model.now));
            if !(least as u64..=most as u64).contains(&view.lane_waiting) {
                let shown = view.lane_waiting;
                let _ = writeln!(wrong, "{}: {shown} wait in lanes, should be {least} to {most}", view.partition);
            }
            let committed = part.acked.as_ref().map(|s| s.offset);
            if committed.is_some() && view.committed.map(|c| c.0) != committed {
                let _ = writeln!(wrong, "{}: committed is shown as {:?}", view.partition, view.committed);
            }
        }
        let leased: usize = model.parts.values().map(crate::support::model::Part::leased).sum();
        if self.engine.leases_open() != leased as u64 {
            let _ = writeln!(wrong, "leases_open {} instead of {leased}", self.engine.leases_open());
        }
        let shown: Vec<_> = self.engine.sessions();
        if shown.len() != model.sessions.len() {
            let _ = writeln!(wrong, "{} sessions are shown, there are {}", shown.len(), model.sessions.len());
        }
        for view in shown {
            let held = model.held(view.session);
            if (view.leased, view.leased_bytes) != (held.records, held.bytes) {
                let _ = writeln!(wrong, "{view:?}: holds {held:?}");
            }
        }
        if self.engine.stats().invariants_broken != 0 {
            let _ = writeln!(wrong, "the engine saw an invariant broken");
        }
        if !wrong.is_empty() {
            self.model.broken(wrong);
        }
    }

    fn fail_if_broken(&self) {
        if self.strict && !self.model.violations.is_empty() {
            panic!("{}", self.report());
        }
    }

    /// The breaches, and the last steps that led to them.
    pub(crate) fn report(&self) -> String {
        let from = self.story.len().saturating_sub(STORY_LINES);
        format!("{}\n--- the last steps ---\n{}", self.model.violations.join("\n"), self.story[from..].join("\n"))
    }
}

fn to_i64(n: u64) -> i64 {
    i64::try_from(n).expect("test sizes are small")
}

/// An output in one line, without payloads.
fn brief(output: &Output) -> String {
    match output {
        Output::Deliver { session, sequence, batches } => {
            let mut line = format!("Deliver {session:?} frame {sequence}:");
            for batch in batches {
                let records = batch.records.iter().map(|d| (d.record.offset, d.attempts)).collect::<Vec<_>>();
                let _ = write!(line, " {} {records:?}", batch.partition);
            }
            line
        }
        Output::Commit { partition, offset, metadata, .. } => {
            format!("Commit {partition} {offset:?}, {} units", metadata.encode_utf16().count())
        }
        other => format!("{other:?}"),
    }
}
