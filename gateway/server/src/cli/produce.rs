//! `sluice produce`: a person's tool to write records.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Parser;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use sluice_kafka::tools::{Outgoing, Producer, ToolError};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::cli::Output;

/// Records in flight at once.
const IN_FLIGHT_MAX: usize = 1_000;

/// Write records to a Kafka topic and print where each went.
///
/// With --value one record is written, else one for each line of stdin.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Kafka's brokers: host:port, several separated by commas.
    #[arg(long, short, value_name = "HOST:PORT", env = "SLUICE_BROKERS", hide_env_values = true)]
    brokers: String,
    /// The topic.
    #[arg(long, short)]
    topic: String,
    /// The key. Absent: null.
    #[arg(long, short, conflicts_with = "keyed")]
    key: Option<String>,
    /// The value of the one record to write. Absent: each line of stdin is a value.
    #[arg(long, short, conflicts_with = "keyed")]
    value: Option<String>,
    /// Lines of stdin are KEY<TAB>VALUE.
    #[arg(long)]
    keyed: bool,
    /// A header, may be given several times.
    #[arg(long, short = 'H', value_name = "NAME=VALUE", value_parser = pair)]
    header: Vec<(String, String)>,
    /// A librdkafka property, as in security.protocol=SSL; may be given several times.
    #[arg(long, short = 'X', value_name = "NAME=VALUE", value_parser = pair)]
    property: Vec<(String, String)>,
    /// Give up on a record that is not acknowledged after this.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| "write NAME=VALUE".to_owned())?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let properties: BTreeMap<_, _> = args.property.iter().cloned().collect();
    let producer = Producer::new(&args.brokers, &properties, args.timeout)?;
    if let Some(value) = &args.value {
        let record = args.record(args.key.clone(), value.clone());
        return print(&args.topic, producer.send(&record).await);
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut sent = FuturesOrdered::new();
    let mut end = Ok(());
    let mut reading = true;
    // A line that cannot be read is no reason to say nothing of those before it.
    while reading || !sent.is_empty() {
        tokio::select! {
            biased;
            Some(answer) = sent.next(), if !sent.is_empty() => print(&args.topic, answer)?,
            line = lines.next_line(), if reading && sent.len() < IN_FLIGHT_MAX => match args.read(line) {
                Ok(Some(record)) => sent.push_back(producer.send(&record)),
                Ok(None) => reading = false,
                Err(error) => (reading, end) = (false, Err(error)),
            },
        }
    }
    end
}

impl Args {
    /// The record of a line of stdin; `None` at its end.
    fn read(&self, line: std::io::Result<Option<String>>) -> anyhow::Result<Option<Outgoing>> {
        let Some(line) = line.context("stdin")? else { return Ok(None) };
        if !self.keyed {
            return Ok(Some(self.record(self.key.clone(), line)));
        }
        let (key, value) = line
            .split_once('\t')
            .with_context(|| format!("with --keyed a line is KEY<TAB>VALUE, and this has no tab: {line}"))?;
        Ok(Some(self.record(Some(key.to_owned()), value.to_owned())))
    }

    fn record(&self, key: Option<String>, value: String) -> Outgoing {
        let headers = self.header.iter().map(|(name, value)| (name.clone(), Bytes::from(value.clone()))).collect();
        Outgoing { topic: self.topic.clone(), key: key.map(Bytes::from), value: Some(Bytes::from(value)), headers }
    }
}

fn print(topic: &str, answer: Result<(i32, i64), ToolError>) -> anyhow::Result<()> {
    let (partition, offset) = answer?;
    let topic = serde_json::Value::from(topic);
    Output.line(format_args!(r#"{{"topic":{topic},"partition":{partition},"offset":{offset}}}"#))?;
    Ok(())
}
