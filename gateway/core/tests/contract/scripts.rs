//! Data-driven scripts: a command with its arguments, `----`, and the expected output, which draws the ledger.
//!
//! A ledger is drawn as `p0 next 45 frontier 40 committed 40 | 40 La 41 d 43 w 44 .`: leased by session a, done, waiting
//! for its retry, ready. `SLUICE_REWRITE_SCRIPTS=1 cargo test -p sluice-core` writes what happened as what is expected.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use sluice_core::{
    Backoff, CommitError, End, Leases, LetterError, Millis, OffsetRange, OnExhausted, Outcome, Output, Policy,
    RevokeReason, SessionId, Settlement, Settlements, TopicPartition, Window,
};

use crate::support::client;
use crate::support::kafka::record;
use crate::support::model::State;
use crate::support::plant::Plant;
use crate::support::world::World;

/// One script's world, with names for its sessions.
struct Script {
    world: World,
    names: BTreeMap<String, SessionId>,
}

/// A command's words: what it is, then positional and `key=value` ones.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        let (mut plain, mut named) = (Vec::new(), BTreeMap::new());
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some((key, value)) => drop(named.insert(key, value)),
                None => plain.push(word),
            }
        }
        Self { plain, named }
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.named.get(key).map(|v| v.parse().unwrap_or_else(|e| panic!("{key}={v}: {e}")))
    }

    fn at(&self, n: usize) -> &'a str {
        self.plain.get(n).unwrap_or_else(|| panic!("word {n} is missing in {:?}", self.plain))
    }

    fn has(&self, word: &str) -> bool {
        self.plain.contains(&word)
    }
}

/// `40-42,44` as ranges.
fn ranges(text: &str) -> Vec<OffsetRange> {
    let number = |n: &str| n.parse().unwrap_or_else(|e| panic!("offset {n}: {e}"));
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => OffsetRange { first: number(first), last: number(last) },
        None => OffsetRange::one(number(part)),
    };
    text.split(',').map(range).collect()
}

fn policy(words: &Words<'_>) -> Policy {
    let mut policy = Policy {
        ack_timeout_ms: 1_000,
        resume_timeout_ms: 300,
        dead_letter_backoff: Backoff { initial_ms: 200, multiplier: 2.0, max_ms: 1_000, jitter: 0.0 },
        backoff: Backoff { initial_ms: 100, multiplier: 2.0, max_ms: 1_000, jitter: 0.0 },
        ..Policy::default()
    };
    for key in words.named.keys() {
        if *key == "exhausted" {
            policy.on_exhausted = match words.named[key] {
                "drop" => OnExhausted::Drop,
                "dead_letter" => OnExhausted::DeadLetter,
                _ => OnExhausted::Block,
            };
            continue;
        }
        let value = words.number(key).expect("it is there");
        let size = usize::try_from(value).expect("a small number");
        match *key {
            "partitions" => {}
            "topic" => policy.dead_letter_topic = value > 0,
            "letters" => policy.dead_letters_in_flight_max = size,
            "metadata" => policy.metadata_units_max = size,
            "span" => policy.span_max = value,
            "bytes" => policy.partition_bytes_max = value,
            "frame" => policy.frame_records_max = size,
            "attempts" => policy.max_attempts = u32::try_from(value).expect("a small number"),
            other => panic!("no such policy: {other}"),
        }
    }
    policy
}

impl Script {
    fn new(words: &Words<'_>) -> Self {
        let partitions = words.number("partitions").map_or(1, |p| i32::try_from(p).expect("few"));
        let mut world = World::new(policy(words), partitions, Plant::Nothing);
        // The first commit, of where the start policy began, is none of the scripts' business.
        world.answer_all_commits();
        world.driver.taping = true;
        Self { world, names: BTreeMap::new() }
    }

    fn part(&self, words: &Words<'_>) -> TopicPartition {
        let n: usize = words.plain.iter().find_map(|w| w.strip_prefix('p')?.parse().ok()).unwrap_or(0);
        self.world.topics[n].clone()
    }

    fn session(&self, name: &str) -> SessionId {
        *self.names.get(name).unwrap_or_else(|| panic!("no session {name}"))
    }

    fn name(&self, session: SessionId) -> String {
        self.names.iter().find(|(_, s)| **s == session).map_or_else(|| format!("{session:?}"), |(n, _)| n.clone())
    }

    fn run(&mut self, line: &str) -> String {
        let words = Words::of(line);
        let tp = self.part(&words);
        let mut out = String::new();
        match words.at(0) {
            "records" => self.records(&tp, words.plain.last().expect("offsets")),
            "markers" => {
                self.world.kafka.produce_markers(&tp, u8::try_from(words.number("n").unwrap_or(1)).expect("few"));
                self.world.position(&tp);
            }
            "open" => out = self.open(&words),
            "window" => {
                let window = window(&words);
                self.world.driver.window(self.session(words.at(1)), window);
                self.world.absorb();
            }
            "ack" | "retry" | "release" | "extend" | "dead_letter" => self.settle(&words, &tp),
            "pass" => self.world.advance(words.at(1).parse().expect("milliseconds")),
            "close" => {
                let end = match words.at(2) {
                    "broken" => End::Broken,
                    "half" => End::HalfClose,
                    "drained" => End::Drained,
                    other => panic!("no such end: {other}"),
                };
                self.world.close(self.session(words.at(1)), end);
            }
            "committed" => self.world.answer_commit(&tp, true, None),
            "refused" => self.world.answer_commit(&tp, false, Some(CommitError::Retriable)),
            "too_large" => self.world.answer_commit(&tp, false, Some(CommitError::MetadataTooLarge)),
            "written" | "not_written" | "written_too_large" => {
                let offset: i64 = words.at(1).parse().expect("an offset");
                let of = self.world.letters.iter().position(|(of, _, n)| (of, *n) == (&tp, offset));
                let result = match words.at(0) {
                    "written" => Ok(()),
                    "not_written" => Err(LetterError::Failed),
                    _ => Err(LetterError::TooLarge),
                };
                self.world.answer_letter(of.expect("it is on its way"), result, words.has("again"));
            }
            "revoking" => {
                let grace = words.number("grace").unwrap_or(500);
                self.world.driver.revoking(&[tp], Millis(self.world.driver.now().0 + grace));
                self.world.absorb();
            }
            "lost" => self.world.lose(&tp, RevokeReason::Reassigned),
            "seek" => self.world.seek(&tp, words.named["to"].parse().expect("an offset")),
            "assign" => self.world.assign_all(),
            "crash" => {
                self.world.crash();
                self.world.driver.taping = true;
                self.names.clear();
            }
            "fetch" => {
                self.world.fetch(&tp, usize::try_from(words.number("n").unwrap_or(1_000)).expect("few"), false);
                self.world.position(&tp);
            }
            other => panic!("no such command: {other}"),
        }
        out + &self.draw()
    }

    fn records(&mut self, tp: &TopicPartition, offsets: &str) {
        let log = self.world.kafka.logs.entry(tp.clone()).or_default();
        for range in ranges(offsets) {
            log.records.extend((range.first..=range.last).map(|o| record(tp, o, 0)));
            log.end = range.last + 1;
        }
        self.world.fetch(tp, usize::MAX, true);
    }

    fn open(&mut self, words: &Words<'_>) -> String {
        let name = words.at(1);
        let mut open = client::open(words.named.get("id").copied(), 0);
        open.window = Some(window(words));
        open.seen = words.number("seen").unwrap_or(0);
        if let Some(held) = words.named.get("holding") {
            let tp = self.part(words);
            open.holding = vec![client::leases(&tp, self.world.owned[&tp].epoch, ranges(held))];
        }
        // The answer comes before the first delivery, so the name is known when that is drawn.
        let before = self.world.driver.engine.sessions().len();
        let session = self.world.open(open);
        self.names.insert(name.into(), session);
        let known = self.world.driver.engine.sessions().len() == before;
        if known { format!("{name} is known\n") } else { format!("{name} is new\n") }
    }

    fn settle(&mut self, words: &Words<'_>, tp: &TopicPartition) {
        let reason = String::new();
        let outcome = match words.at(0) {
            "ack" => Outcome::Ack,
            "retry" => Outcome::Retry { delay_ms: words.number("delay"), reason },
            "release" => Outcome::Release,
            "dead_letter" => Outcome::DeadLetter { reason },
            _ => Outcome::Extend { ack_timeout_ms: words.number("by") },
        };
        let session = self.session(words.at(1));
        let owned = self.world.owned.get(tp).map_or(sluice_core::Epoch(1), |o| o.epoch);
        let epoch = if words.has("stale") { sluice_core::Epoch(owned.0 - 1) } else { owned };
        let offsets = words.plain.iter().rev().find(|w| w.starts_with(|c: char| c.is_ascii_digit()));
        let leases = client::leases(tp, epoch, ranges(offsets.expect("offsets")));
        let last = self.world.clients.get(&session).map_or(0, |c| c.last_frame);
        let frame = Settlements {
            request_id: words.number("request").unwrap_or(0),
            durable: words.has("durable"),
            seen: words.number("seen").unwrap_or(last),
            settlements: vec![Settlement { leases, outcome }],
        };
        self.world.settle(session, frame);
    }

    // === what is drawn ===

    fn draw(&mut self) -> String {
        let mut text = String::new();
        for output in std::mem::take(&mut self.world.driver.tape) {
            let _ = writeln!(text, "→ {}", self.draw_output(&output));
        }
        for tp in self.world.topics.clone() {
            let _ = writeln!(text, "{}", self.draw_ledger(&tp));
        }
        text
    }

    fn draw_ledger(&self, tp: &TopicPartition) -> String {
        let driver = &self.world.driver;
        let Some(part) = driver.model.parts.get(tp) else { return format!("p{} is not here", tp.partition) };
        let view = driver.engine.partitions(driver.now()).into_iter().find(|v| v.partition == *tp);
        let view = view.expect("the model and the engine own the same");
        let committed = part.acked.as_ref().map_or_else(|| "-".into(), |s| s.offset.to_string());
        let frontier = view.committable.0;
        let mut text = format!("p{} next {} frontier {frontier} committed {committed} |", tp.partition, view.next.0);
        for (offset, state) in driver.model.part_states(tp).into_iter().filter(|(o, _)| *o >= frontier) {
            let letter = match state {
                State::Done => "d".into(),
                State::Unsure => "?".into(),
                State::Leased { session, .. } => format!("L{}", self.name(session)),
                State::Undecided { .. } => "?".into(),
                State::Letter { in_flight: true, .. } => "X".into(),
                State::Letter { .. } => "x".into(),
                State::Idle { not_before, .. } if not_before > driver.now().0 => "w".into(),
                State::Idle { .. } => ".".into(),
            };
            let _ = write!(text, " {offset} {letter}");
        }
        text
    }

    fn draw_output(&self, output: &Output) -> String {
        match output {
            Output::Deliver { session, sequence, batches } => {
                let mut text = format!("{}: frame {sequence}:", self.name(*session));
                for batch in batches {
                    let _ = write!(text, " p{}", batch.partition.partition);
                    for dealt in batch.records.iter() {
                        let _ = write!(text, " {}", dealt.record.offset);
                        if dealt.attempts > 0 {
                            let _ = write!(text, "({})", dealt.attempts);
                        }
                    }
                }
                text
            }
            Output::Settled { session, request_id, rejections } => {
                let mut text = format!("{}: settled {request_id}", self.name(*session));
                for rejection in rejections {
                    let _ = write!(text, ", {} {:?}", draw_leases(&rejection.leases), rejection.reason);
                }
                text
            }
            Output::Revoked { session, leases, reason } => {
                format!("{}: revoked {} {reason:?}", self.name(*session), draw_leases(leases))
            }
            Output::Committed { session, partition, offset } => {
                format!("{}: committed p{} {}", self.name(*session), partition.partition, offset.0)
            }
            Output::Commit { partition, offset, metadata, .. } => {
                let said = if metadata.is_empty() { "" } else { ", with metadata" };
                format!("commit p{} {}{said}", partition.partition, offset.0)
            }
            Output::Drained { partition } => format!("drained p{}", partition.partition),
            Output::Hold { partition } => format!("hold p{}", partition.partition),
            Output::Unhold { partition, next } => format!("unhold p{} from {}", partition.partition, next.0),
            Output::Rest(rest) => format!("rest {rest}"),
            Output::SettledUnary { ticket, rejections } => format!("unary {}: {rejections:?}", ticket.0),
            Output::DeadLetter { partition, letter, .. } => {
                format!("dead letter p{} {} {:?}", partition.partition, letter.record.offset, letter.cause)
                    + if letter.plain { ", plain" } else { "" }
            }
            Output::Gone { session } => format!("{}: gone", self.name(*session)),
        }
    }
}

fn draw_leases(leases: &Leases) -> String {
    let one = |r: &OffsetRange| if r.first == r.last { r.first.to_string() } else { format!("{}-{}", r.first, r.last) };
    let offsets: Vec<_> = leases.offsets.iter().map(one).collect();
    format!("p{} {}", leases.partition.partition, offsets.join(","))
}

fn window(words: &Words<'_>) -> Window {
    let records = words.number("window").or_else(|| words.plain.get(2)?.parse().ok()).unwrap_or(100);
    Window { max_records: u32::try_from(records).expect("small"), max_bytes: words.number("max_bytes").unwrap_or(0) }
}

/// Runs a script; what it should have said.
fn replay(text: &str) -> String {
    let mut script = Script::new(&Words::of(""));
    let mut result = String::new();
    for block in text.split("\n\n").map(str::trim).filter(|b| !b.is_empty()) {
        let (input, _) = block.split_once("\n----").unwrap_or((block, ""));
        let commands: Vec<_> = input.lines().filter(|l| !l.starts_with('#')).collect();
        let mut output = String::new();
        for command in &commands {
            if command.starts_with("policy") {
                script = Script::new(&Words::of(command));
                output.push_str(&script.draw());
            } else {
                output = keep_outputs(&output) + &script.run(command);
            }
        }
        let _ = writeln!(result, "{input}");
        if !commands.is_empty() {
            let _ = write!(result, "----\n{output}");
        }
        result.push('\n');
    }
    result.trim_end().to_string() + "\n"
}

/// Of several commands in one block, the ledger is drawn after the last.
fn keep_outputs(text: &str) -> String {
    text.lines().filter(|l| !l.starts_with('p')).fold(String::new(), |all, line| all + line + "\n")
}

#[test]
fn scripts_draw_what_they_should() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/contract/scripts");
    let rewrite = std::env::var_os("SLUICE_REWRITE_SCRIPTS").is_some();
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    assert!(paths.len() >= 10, "scripts are missing in {}", folder.display());
    let mut wrong = String::new();
    for path in paths {
        let expected = std::fs::read_to_string(&path).unwrap();
        let happened = replay(&expected);
        if rewrite {
            std::fs::write(&path, happened).unwrap();
        } else if let Some((n, (e, h))) = expected.lines().zip(happened.lines()).enumerate().find(|(_, (e, h))| e != h)
        {
            let _ = writeln!(wrong, "{}:{}:\n  expected {e}\n  happened {h}", path.display(), n + 1);
        } else if expected.lines().count() != happened.lines().count() {
            let _ = writeln!(wrong, "{}: the length differs", path.display());
        }
    }
    assert!(wrong.is_empty(), "{wrong}run with SLUICE_REWRITE_SCRIPTS=1 and read the difference");
}
