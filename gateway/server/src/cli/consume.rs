//! `sluice consume`: a person's tool to lease records and look at them.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use clap::{CommandFactory as _, Parser, error::ErrorKind};
use regex::Regex;
use serde::Serialize;
use sluice_client::{Consumer, Event, Outcome, Record, RejectReason};
use tokio::sync::mpsc;

use crate::cli::Output;
use crate::cli::operator::Server;
use crate::cli::output::is_broken_pipe;
use crate::cli::signals::Signals;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What was printed is settled by then; this is for the answers.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The contract's default for a window's bytes.
const WINDOW_BYTES: u64 = 8 << 20;

/// Lease records of a subscription and print them, one JSON object a line.
///
/// What is neither text nor null stands in base64, in `key_base64`, `value_base64`. Ends after --max-records, after
/// --idle-timeout without a record, or with Ctrl-C; by then every acknowledgement is answered, and what is leased and not
/// settled is given back.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// The subscription.
    #[arg(long, short)]
    subscription: String,
    #[command(flatten)]
    server: Server,
    /// End after so many records.
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_records: Option<u32>,
    /// Hold at most so many records at once.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// What to do with each record after it is printed.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    ack: AckMode,
    /// With --ack retry: the record comes again after this, and not after the subscription's backoff.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    delay: Option<Duration>,
    /// Give up each record whose value matches this regular expression: it goes to the dead letters.
    ///
    /// Where the subscription has no topic for them, it goes the way of `on_exhausted`. The others, and values that are null
    /// or no text, go the way of --ack.
    #[arg(long, value_name = "PATTERN")]
    dead_letter_on: Option<Regex>,
    /// A name that is stable over reconnects: with it leases survive a broken connection.
    #[arg(long, value_name = "ID")]
    consumer_id: Option<String>,
    /// End when no record came for so long.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    idle_timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AckMode {
    /// Acknowledge: the record is done.
    Auto,
    /// Hold, and give back at the end: nothing changes. Shows one window at most.
    None,
    /// Say that it failed: it comes again after the subscription's backoff or --delay, with one attempt more.
    Retry,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    args.check().unwrap_or_else(|error| error.exit());
    let mut signals = Signals::new()?;
    // Nothing is leased that will not be printed.
    let first_window = args.max_records.map_or(args.window, |n| n.min(args.window));
    // Without a name leases return at once when this process dies, not after `resume_timeout`.
    let consumer_id = args.consumer_id.clone().unwrap_or_default();
    let builder = Consumer::builder(args.server.url(), &args.subscription)
        .window(first_window)
        .consumer_id(consumer_id)
        .connect_timeout(CONNECT_TIMEOUT);
    let mut consumer = tokio::select! {
        consumer = builder.connect() => consumer?,
        _ = signals.next() => return Ok(()),
    };
    let mut refusals = Refusals { events: consumer.events(), count: 0 };
    let printed = tokio::select! {
        printed = print(&args, &mut consumer, &mut refusals) => printed,
        _ = signals.next() => Ok(()),
    };
    let closed = signals.or_exit(consumer.close(CLOSE_TIMEOUT)).await;
    match printed {
        // A reader that has seen enough is an ordinary end: the leases are given back, and all is well.
        Err(error) if is_broken_pipe(&error) => return Ok(()),
        printed => printed?,
    }
    closed?;
    refusals.end()
}

async fn print(args: &Args, consumer: &mut Consumer, refusals: &mut Refusals) -> anyhow::Result<()> {
    let max = match args.ack {
        AckMode::None => args.max_records.unwrap_or(u32::MAX).min(args.window),
        AckMode::Auto | AckMode::Retry => args.max_records.unwrap_or(u32::MAX),
    };
    let mut held = Vec::new();
    for n in 1..=max {
        let next = match args.idle_timeout {
            Some(limit) => match tokio::time::timeout(limit, consumer.next()).await {
                Ok(next) => next?,
                Err(_) => break,
            },
            None => consumer.next().await?,
        };
        let Some(record) = next else { break };
        Output.line(to_json(&record)?)?;
        refusals.count();
        let Some(outcome) = args.outcome(record.value()) else {
            held.push(record);
            continue;
        };
        // Before the record is settled, so that what it frees is not dealt to us again.
        let window = u32::try_from(held.len()).unwrap_or(u32::MAX).saturating_add(max - n);
        if window < args.window {
            consumer.set_window(window, WINDOW_BYTES);
        }
        record.settle(outcome);
    }
    consumer.flush().await?;
    Ok(())
}

// === impl Args ===

impl Args {
    /// What the definition of the arguments cannot say.
    fn check(&self) -> Result<(), clap::Error> {
        if self.delay.is_some() && self.ack != AckMode::Retry {
            let problem = "--delay is that of a retry: it needs --ack retry";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, problem));
        }
        Ok(())
    }

    /// How a record with this value is settled; `None`: it is held.
    fn outcome(&self, value: Option<&Bytes>) -> Option<Outcome> {
        let text = value.and_then(|bytes| std::str::from_utf8(bytes).ok());
        if let Some(pattern) = self.dead_letter_on.as_ref().filter(|pattern| text.is_some_and(|t| pattern.is_match(t)))
        {
            return Some(Outcome::DeadLetter { reason: format!("its value matches {pattern}") });
        }
        match self.ack {
            AckMode::Auto => Some(Outcome::Ack),
            AckMode::Retry => Some(Outcome::Retry { delay: self.delay, reason: String::new() }),
            AckMode::None => None,
        }
    }
}

/// Settlements that the gateway does not take: a person must not believe that they were.
struct Refusals {
    events: Option<mpsc::Receiver<Event>>,
    count: u64,
}

// === impl Refusals ===

impl Refusals {
    /// Looks at what has happened. Now and then, since events that nobody takes are dropped.
    fn count(&mut self) {
        while let Some(Ok(event)) = self.events.as_mut().map(mpsc::Receiver::try_recv) {
            if let Event::Rejected { offsets, reason: RejectReason::Invalid } = event {
                self.count += offsets.ranges.iter().map(|(first, last)| first.abs_diff(*last) + 1).sum::<u64>();
            }
        }
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.count();
        anyhow::ensure!(
            self.count == 0,
            "the gateway does not take {} of the settlements, and these records are retried after the subscription's backoff: \
             is --delay above its `max_retry_delay`?",
            self.count
        );
        Ok(())
    }
}

/// What is printed of a record. A struct, so that the fields stand in this order.
#[derive(Debug, Serialize)]
struct Line<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    timestamp: Option<String>,
    #[serde(flatten)]
    key: Key<'a>,
    #[serde(flatten)]
    value: Value<'a>,
    headers: Vec<HeaderLine<'a>>,
    attempts: u32,
}

#[derive(Debug, Serialize)]
struct HeaderLine<'a> {
    name: &'a str,
    #[serde(flatten)]
    value: Value<'a>,
}

/// Text as text, null as null, anything else in base64 under a name that says so.
#[derive(Debug, Serialize)]
enum Key<'a> {
    #[serde(rename = "key")]
    Text(Option<&'a str>),
    #[serde(rename = "key_base64")]
    Base64(String),
}

/// As [`Key`].
#[derive(Debug, Serialize)]
enum Value<'a> {
    #[serde(rename = "value")]
    Text(Option<&'a str>),
    #[serde(rename = "value_base64")]
    Base64(String),
}

fn to_json(record: &Record) -> serde_json::Result<String> {
    let value = |bytes| text_or_base64(bytes).map_or_else(Value::Base64, Value::Text);
    serde_json::to_string(&Line {
        topic: record.topic(),
        partition: record.partition(),
        offset: record.offset(),
        timestamp: record.timestamp().map(|time| humantime::format_rfc3339_millis(time).to_string()),
        key: text_or_base64(record.key()).map_or_else(Key::Base64, Key::Text),
        value: value(record.value()),
        headers: record.headers().map(|(name, bytes)| HeaderLine { name, value: value(bytes) }).collect(),
        attempts: record.attempts(),
    })
}

/// The text, or what is no text in base64.
fn text_or_base64(bytes: Option<&Bytes>) -> Result<Option<&str>, String> {
    bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| BASE64.encode(bytes))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(args: &[&str]) -> Result<Args, clap::Error> {
        let args = Args::try_parse_from([&["consume", "--subscription", "orders"], args].concat())?;
        args.check().map(|()| args)
    }

    /// The words of the problem alone.
    fn problem(args_of: &[&str]) -> String {
        let error = args(args_of).unwrap_err().to_string();
        error.split("\n\n").next().unwrap_or_default().to_owned()
    }

    #[test]
    fn flags_that_contradict_each_other_and_patterns_that_are_none_are_refused() {
        insta::assert_snapshot!(problem(&["--delay", "5s"]), @"error: --delay is that of a retry: it needs --ack retry");
        insta::assert_snapshot!(problem(&["--delay", "5s", "--ack", "none"]), @"error: --delay is that of a retry: it needs --ack retry");
        insta::assert_snapshot!(problem(&["--delay", "soon", "--ack", "retry"]), @"error: invalid value 'soon' for '--delay <DURATION>': expected number at 0");
        insta::assert_snapshot!(problem(&["--dead-letter-on", "a("]), @r"
        error: invalid value 'a(' for '--dead-letter-on <PATTERN>': regex parse error:
            a(
             ^
        error: unclosed group
        ");
    }

    #[test]
    fn what_matches_is_a_dead_letter_and_the_rest_goes_the_way_of_ack() {
        let outcome = |args: &Args, value: Option<&'static [u8]>| args.outcome(value.map(Bytes::from_static).as_ref());
        let retried = Outcome::Retry { delay: Some(Duration::from_secs(5)), reason: String::new() };
        for (flags, other) in [
            (&["--dead-letter-on", "bad|wrong"][..], Some(Outcome::Ack)),
            (&["--dead-letter-on", "bad|wrong", "--ack", "none"], None),
            (&["--dead-letter-on", "bad|wrong", "--ack", "retry", "--delay", "5s"], Some(retried)),
        ] {
            let args = args(flags).unwrap();
            let given_up = Some(Outcome::DeadLetter { reason: "its value matches bad|wrong".to_owned() });
            assert_eq!(outcome(&args, Some(b"it is wrong")), given_up);
            assert_eq!(outcome(&args, Some(b"all is well")), other);
            assert_eq!(outcome(&args, None), other, "null");
            assert_eq!(outcome(&args, Some(b"bad\xff")), other, "no text");
        }
    }

    #[test]
    fn bytes_that_are_no_text_stand_in_base64() {
        let line = Line {
            topic: "orders",
            partition: 1,
            offset: 7,
            timestamp: None,
            key: Key::Text(None),
            value: Value::Base64(text_or_base64(Some(&Bytes::from_static(b"\xff\x00"))).unwrap_err()),
            headers: vec![HeaderLine { name: "h", value: Value::Text(Some("grün")) }],
            attempts: 0,
        };
        insta::assert_snapshot!(serde_json::to_string(&line).unwrap(), @r#"{"topic":"orders","partition":1,"offset":7,"timestamp":null,"key":null,"value_base64":"/wA=","headers":[{"name":"h","value":"grün"}],"attempts":0}"#);
    }
}
