//! `sluice consume`: a person's tool to lease records and look at them.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use clap::Parser;
use serde::Serialize;
use sluice_client::{Consumer, Record};

use crate::cli::Output;
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
    /// Address of the gateway.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:7070",
        env = "SLUICE_SERVER",
        hide_env_values = true
    )]
    server: String,
    /// End after so many records.
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_records: Option<u32>,
    /// Hold at most so many records at once.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// What to do with each record after it is printed.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    ack: AckMode,
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
    /// Say that it failed: it comes again after the subscription's backoff, with one attempt more.
    Retry,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    // Nothing is leased that will not be printed.
    let first_window = args.max_records.map_or(args.window, |n| n.min(args.window));
    // Without a name leases return at once when this process dies, not after `resume_timeout`.
    let consumer_id = args.consumer_id.clone().unwrap_or_default();
    let builder = Consumer::builder(&args.server, &args.subscription)
        .window(first_window)
        .consumer_id(consumer_id)
        .connect_timeout(CONNECT_TIMEOUT);
    let mut consumer = tokio::select! {
        consumer = builder.connect() => consumer?,
        _ = signals.next() => return Ok(()),
    };
    let printed = tokio::select! {
        printed = print(&args, &mut consumer) => printed,
        _ = signals.next() => Ok(()),
    };
    let closed = signals.or_exit(consumer.close(CLOSE_TIMEOUT)).await;
    match printed {
        // A reader that has seen enough is an ordinary end: the leases are given back, and all is well.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Ok(closed?),
    }
}

async fn print(args: &Args, consumer: &mut Consumer) -> anyhow::Result<()> {
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
        // Before the record is settled, so that what it frees is not dealt to us again.
        let left = max - n;
        if left < args.window && args.ack != AckMode::None {
            consumer.set_window(left, WINDOW_BYTES);
        }
        match args.ack {
            AckMode::Auto => record.ack(),
            AckMode::Retry => record.retry(),
            AckMode::None => held.push(record),
        }
    }
    consumer.flush().await?;
    Ok(())
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
