//! Who is in groups, asked by a process of its own.
//!
//! librdkafka's Admin API asks a group's coordinator, and such a request aborts the process when the broker goes away under it, or
//! long after it was given up (librdkafka issue 4605, open). So a gateway never makes one: now and then it starts a process that
//! asks, says what it heard on its standard output, and ends. What happens to that one is an answer that does not come.

mod child;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::io::GroupMember;
use crate::subscription::{Error, spawn};

pub use child::describe_groups;

/// A process asks at most so long.
const WITHIN: Duration = Duration::from_secs(20);
/// Subscriptions that ask within this share a process. Answers come to them together, so later they ask together.
const GATHER: Duration = Duration::from_millis(500);

/// Who is in the group, in no order; or why that is not known.
pub(crate) type Answer = Result<Vec<GroupMember>, String>;

/// Starts processes that ask who is in groups, one at a time. One for a gateway; clones are the same.
#[derive(Debug, Clone)]
pub struct Describer(Sender<Ask>);

#[derive(Debug)]
struct Ask {
    properties: BTreeMap<String, String>,
    group: String,
    answer: Sender<Answer>,
}

/// What the process is told, on its standard input.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    properties: BTreeMap<String, String>,
    groups: Vec<String>,
    within_ms: u64,
}

/// What it says of each group: a line of JSON on its standard output.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    group: String,
    answer: Answer,
}

impl Describer {
    /// The program is to call [`describe_groups`] when it is given these arguments.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(program: PathBuf, arguments: Vec<OsString>) -> Result<Self, Error> {
        let (sender, asks) = channel();
        spawn("kafka-groups", move || run(&program, &arguments, &asks))?;
        Ok(Self(sender))
    }

    /// Asks who is in the group; the receiver gets one answer, or its sender is dropped.
    pub(crate) fn ask(&self, properties: BTreeMap<String, String>, group: String) -> Receiver<Answer> {
        let (answer, receiver) = channel();
        // Without the thread the answer's sender is dropped here, which says so.
        let _no_thread = self.0.send(Ask { properties, group, answer });
        receiver
    }
}

fn run(program: &PathBuf, arguments: &[OsString], asks: &Receiver<Ask>) {
    let mut waiting: Vec<Ask> = Vec::new();
    loop {
        if waiting.is_empty() {
            let Ok(first) = asks.recv() else { return };
            waiting.push(first);
            std::thread::sleep(GATHER);
        }
        waiting.extend(asks.try_iter());
        let properties = waiting[0].properties.clone();
        let (mut now, later) = waiting.into_iter().partition(|ask| ask.properties == properties);
        waiting = later;
        let why = match look(program, arguments, properties, &mut now) {
            Ok(status) => format!("the process that asks ended without an answer: {status}"),
            Err(error) => format!("the process that asks did not start: {error}"),
        };
        for ask in now {
            tell(&ask, Err(why.clone()));
        }
    }
}

/// Starts a process for these groups; those that it answered are taken out.
fn look(
    program: &PathBuf,
    arguments: &[OsString],
    properties: BTreeMap<String, String>,
    asks: &mut Vec<Ask>,
) -> std::io::Result<ExitStatus> {
    let groups = asks.iter().map(|ask| ask.group.clone()).collect();
    let within_ms = u64::try_from(WITHIN.as_millis()).unwrap_or(u64::MAX);
    let question = serde_json::to_vec(&Question { properties, groups, within_ms })?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // One that ended before it read everything says nothing either, and its status says why.
        let _ended = input.write_all(&question);
    }
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let Ok(told) = serde_json::from_str::<Told>(&line) else { continue };
            if let Some(index) = asks.iter().position(|ask| ask.group == told.group) {
                tell(&asks.swap_remove(index), told.answer);
            }
        }
    }
    child.wait()
}

/// Whoever asked may be gone.
fn tell(ask: &Ask, answer: Answer) {
    let _gone = ask.answer.send(answer);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell in place of the process that asks.
    fn shell(script: &str) -> Describer {
        Describer::new("/bin/sh".into(), vec!["-c".into(), script.into()]).expect("a thread")
    }

    fn hear(asked: &Receiver<Answer>) -> Answer {
        asked.recv_timeout(Duration::from_secs(60)).expect("an answer")
    }

    fn properties(broker: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("bootstrap.servers".to_owned(), broker.to_owned())])
    }

    #[test]
    fn a_process_that_aborts_is_an_answer_and_the_next_one_is_started_all_the_same() {
        let describer = shell("cat >/dev/null; kill -ABRT $$");
        for _ in 0..2 {
            let why = hear(&describer.ask(properties("a"), "orders".to_owned())).expect_err("it aborted");
            assert!(why.contains("signal: 6"), "{why}");
        }
    }

    #[test]
    fn what_was_answered_before_the_abort_stands() {
        let answer = r#"{"group":"orders","answer":{"Ok":[{"client_id":"a","host":"/b","partitions":3}]}}"#;
        let describer = shell(&format!("cat >/dev/null; echo noise; echo '{answer}'; kill -ABRT $$"));
        let asked = ["orders", "bills"].map(|group| describer.ask(properties("a"), group.to_owned()));
        let member = GroupMember { client_id: "a".to_owned(), host: "/b".to_owned(), partitions: 3 };
        assert_eq!(hear(&asked[0]), Ok(vec![member]));
        hear(&asked[1]).expect_err("it was not answered");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_answer() {
        let describer = Describer::new("/no/such/program".into(), Vec::new()).expect("a thread");
        let why = hear(&describer.ask(properties("a"), "orders".to_owned())).expect_err("there is none");
        assert!(why.contains("did not start"), "{why}");
    }

    #[test]
    fn groups_of_one_kafka_share_a_process_and_others_do_not() {
        // Each process answers for every group that it was asked of with how many that were.
        let script = r#"q=$(cat); for g in a b c; do case "$q" in *"\"$g\""*) n=$((n+1)); s="$s $g";; esac; done
            for g in $s; do echo "{\"group\":\"$g\",\"answer\":{\"Err\":\"$n\"}}"; done"#;
        let (sender, asks) = channel();
        let describer = Describer(sender);
        let asked = [("x", "a"), ("y", "b"), ("x", "c")]
            .map(|(broker, group)| (group, describer.ask(properties(broker), group.to_owned())));
        // All of them wait when it begins.
        spawn("groups", move || run(&"/bin/sh".into(), &["-c".into(), script.into()], &asks)).expect("a thread");
        let heard: Vec<_> = asked.iter().map(|(group, asked)| (*group, hear(asked).expect_err("a number"))).collect();
        assert_eq!(heard, [("a", "2".to_owned()), ("b", "1".to_owned()), ("c", "2".to_owned())]);
    }
}
