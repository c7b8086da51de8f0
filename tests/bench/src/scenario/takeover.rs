//! `takeover`: two members of a group; one is killed, or told to go. How long until the other has its records.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use sluice_tests::process::Signal;
use sluice_tests::{Gateway, unique};

use super::measure::Contestant;
use super::measure::Kind;
use crate::fill::Shape;
use crate::lab::{Helper, Lab, Topic};
use crate::machine::now_ns;
use crate::report::{Findings, Table, column};
use crate::spread::Spread;

const PARTITIONS: i32 = 4;
const RATE: f64 = 400.0;
/// Both sides alike: the least that brokers allow by default.
pub(super) const SESSION: [&str; 2] = ["kafka_session_timeout = \"6s\"", "commit_interval = \"250ms\""];
pub(super) const RAW_SESSION: &str = "-Xsession.timeout.ms=6000";
/// Both members must have records within this.
pub(super) const JOIN: Duration = Duration::from_secs(30);
/// So long they share the work before one goes.
pub(super) const SHARED: Duration = Duration::from_secs(3);
pub(super) const AWAY: Duration = Duration::from_secs(30);

/// How one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Kill,
    Terminate,
}

/// A record that came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Came {
    pub(super) at_ns: u64,
    pub(super) offset: i64,
    /// A raw consumer has none.
    pub(super) epoch: Option<i64>,
}

/// Records by partition.
type Trace = BTreeMap<i64, Vec<Came>>;

/// A process whose records are written down.
pub(super) struct Traced {
    helper: Helper,
    trace: Arc<Mutex<Trace>>,
}

/// A member of a group.
struct Member {
    /// `None`: the raw consumer is what is traced.
    gateway: Option<Gateway>,
    records: Traced,
}

struct Taken {
    /// From the signal until the last of its partitions was heard of at the other.
    to_first_s: f64,
    /// From its last record of a partition until the other's first, at worst.
    gap_s: f64,
    duplicates: f64,
}

pub fn run(lab: &Lab) -> Result<Findings> {
    let columns = [column("to first record s", 2), column("gap s", 2), column("records given twice", 0)];
    let title = format!("Takeover: {PARTITIONS} partitions, {RATE} records/s, session 6 s, heartbeat 250 ms");
    let mut table = Table::new(title, &columns).note(
        "The time is until the survivor has had a record of each partition of the other. The gap is from the other's last \
         record of a partition to the survivor's first.",
    );
    let (mut raw, mut killed, mut drained) = (Vec::new(), Vec::new(), Vec::new());
    // A session's timeout each: fewer pairs, or it takes minutes.
    for _ in 0..lab.settings.runs.min(2) {
        raw.push(once(lab, Kind::Raw, Exit::Kill)?);
        killed.push(once(lab, Kind::Sluice, Exit::Kill)?);
        drained.push(once(lab, Kind::Sluice, Exit::Terminate)?);
    }
    for (case, who, all) in [("kill -9", "raw", &raw), ("kill -9", "sluice", &killed), ("SIGTERM", "sluice", &drained)]
    {
        let of = |figure: fn(&Taken) -> f64| Spread::of(all.iter().map(figure));
        table.row(case, who, vec![of(|one| one.to_first_s), of(|one| one.gap_s), of(|one| one.duplicates)]);
    }
    let mut findings = Findings { tables: vec![table], figures: Vec::new() };
    let times = |all: &[Taken]| all.iter().map(|one| one.to_first_s).collect::<Vec<_>>();
    findings.figure("P12", "kill -9 ÷ raw", Spread::ratios(&times(&killed), &times(&raw)));
    findings.figure("P13", "SIGTERM, gap s", Spread::of(drained.iter().map(|one| one.gap_s)));
    findings.figure("P13", "SIGTERM, records given twice", Spread::of(drained.iter().map(|one| one.duplicates)));
    Ok(findings)
}

fn once(lab: &Lab, kind: Kind, exit: Exit) -> Result<Taken> {
    let topic = lab.topic(&Shape::new(PARTITIONS, 64), 0)?;
    let group = unique("takeover");
    let mut goes = Member::start(lab, kind, &topic, &group)?;
    let _producer = lab.produce(&topic, RATE, 120.0)?;
    until("the first member has all partitions", JOIN, || goes.records.since(0).len() == PARTITIONS as usize)?;
    let stays = Member::start(lab, kind, &topic, &group)?;
    until("the second member has some", JOIN, || stays.records.since(0).len() == PARTITIONS as usize / 2)?;
    std::thread::sleep(SHARED);
    let settled = now_ns() - 1_000_000_000;
    let lost = goes.records.since(settled);
    let at = now_ns();
    goes.exit(exit)?;
    let arrived = || lost.iter().all(|partition| stays.records.first_since(*partition, at).is_some());
    until("the survivor has all partitions", AWAY, arrived)?;
    std::thread::sleep(Duration::from_secs(1));
    let (mut to_first, mut gap, mut duplicates) = (0, 0, 0);
    for partition in lost {
        let Some(first) = stays.records.first_since(partition, at) else { continue };
        let last = goes.records.last(partition).map_or((at, first.offset - 1), |last| (last.at_ns, last.offset));
        to_first = to_first.max(first.at_ns - at);
        gap = gap.max(first.at_ns.saturating_sub(last.0));
        duplicates += (last.1 + 1 - first.offset).max(0);
    }
    Ok(Taken { to_first_s: to_first as f64 / 1e9, gap_s: gap as f64 / 1e9, duplicates: duplicates as f64 })
}

// === impl Member ===

impl Member {
    fn start(lab: &Lab, kind: Kind, topic: &Topic, group: &str) -> Result<Self> {
        if kind == Kind::Raw {
            return Ok(Self { gateway: None, records: Traced::raw(lab, topic, group)? });
        }
        let subscription = lab.subscription(crate::lab::SUBSCRIPTION, &topic.name, group, &SESSION);
        let gateway = lab.gateway(vec![subscription]);
        let records = Traced::clients(lab, &[gateway.address()])?;
        Ok(Self { gateway: Some(gateway), records })
    }

    fn exit(&mut self, exit: Exit) -> Result<()> {
        match (&mut self.gateway, exit) {
            (Some(gateway), Exit::Kill) => gateway.kill(),
            (Some(gateway), Exit::Terminate) => gateway.signal(Signal::Term),
            (None, Exit::Kill) => self.records.kill(),
            (None, Exit::Terminate) => bail!("a raw consumer is only killed"),
        }
        Ok(())
    }
}

// === impl Traced ===

impl Traced {
    /// A raw consumer, a member of this group.
    pub(super) fn raw(lab: &Lab, topic: &Topic, group: &str) -> Result<Self> {
        let mut raw = lab.raw_helper(&topic.name, group, &["--trace", "--seconds=120", RAW_SESSION])?;
        raw.tell("go")?;
        Self::of(raw)
    }

    /// Two clients of gateways at these addresses.
    pub(super) fn clients(lab: &Lab, addresses: &[&str]) -> Result<Self> {
        let mut arguments = Contestant::new("", Kind::Sluice).streams(2, 1_000).arguments();
        arguments.extend(["--trace", "--seconds=120"].map(str::to_owned));
        // The gateways' CPU time is of no interest, and one of them will be gone.
        Self::of(lab.load_of_many(addresses, &[0], &arguments)?)
    }

    fn of(mut helper: Helper) -> Result<Self> {
        let trace = Arc::new(Mutex::new(Trace::new()));
        let (lines, written) = (helper.take_lines()?, Arc::clone(&trace));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(said) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
                if let (Some(at_ns), Some(partition), Some(offset)) =
                    (said["at"].as_u64(), said["partition"].as_i64(), said["offset"].as_i64())
                {
                    let mut trace = written.lock().unwrap_or_else(PoisonError::into_inner);
                    let came = Came { at_ns, offset, epoch: said["epoch"].as_i64() };
                    trace.entry(partition).or_default().push(came);
                }
            }
        });
        Ok(Self { helper, trace })
    }

    pub(super) fn kill(&self) {
        self.helper.signal(Signal::Kill);
    }

    fn read<T>(&self, look: impl FnOnce(&Trace) -> T) -> T {
        look(&self.trace.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Partitions of which something came since then.
    pub(super) fn since(&self, at: u64) -> Vec<i64> {
        let later = |records: &[Came]| records.last().is_some_and(|last| last.at_ns >= at);
        self.read(|trace| trace.iter().filter(|(_, records)| later(records)).map(|(partition, _)| *partition).collect())
    }

    pub(super) fn first_since(&self, partition: i64, at: u64) -> Option<Came> {
        self.read(|trace| trace.get(&partition)?.iter().find(|came| came.at_ns > at).copied())
    }

    /// The first since then that another owner dealt than the last before it.
    pub(super) fn first_of_another(&self, partition: i64, at: u64) -> Option<Came> {
        self.read(|trace| {
            let records = trace.get(&partition)?;
            let before = records.iter().rfind(|came| came.at_ns <= at)?.epoch;
            records.iter().find(|came| came.at_ns > at && came.epoch != before).copied()
        })
    }

    pub(super) fn last(&self, partition: i64) -> Option<Came> {
        self.read(|trace| trace.get(&partition)?.last().copied())
    }
}

pub(super) fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > limit {
            bail!("not within {} s: {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
