//! `sluice consume` against a gateway: what a person's flags do to records.

use std::process::{Command, Output};

use serde_json::Value;
use sluice_tests::{Gateway, NewRecord, SOON, broker, eventually, unique};

use crate::{committed_to_the_end, gateway};

/// Runs it to its end.
fn consume(gateway: &Gateway, subscription: &str, flags: &[&str]) -> Output {
    let server = format!("http://{}", gateway.address());
    let mut command = Command::new(sluice_tests::gateway::executable());
    command.args(["consume", "--subscription", subscription, "--server", &server]).args(flags);
    command.output().expect("run sluice consume")
}

/// The offsets and attempts that it printed.
fn printed(output: &Output) -> Vec<(i64, u64)> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::str::from_utf8(&output.stdout).expect("text");
    let of = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("a line is a JSON object");
        (line["offset"].as_i64().expect("an offset"), line["attempts"].as_u64().expect("attempts"))
    };
    text.lines().map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn consume_gives_up_what_matches_a_pattern_and_acks_the_rest() {
    let kafka = broker();
    let (topic, letters) = (kafka.topic("patterns", 1), kafka.topic("letters", 1));
    let values = ["{\"n\": 1}", "{\"n\": -2}", "{\"n\": 3}", "{\"n\": -44}"];
    kafka.produce(&topic, values.map(|value| NewRecord::to(0, value)));
    let group = unique("patterns");
    let gateway = gateway(&group, &topic, &[&format!("dead_letter_topic = {letters:?}")]);
    let output = consume(&gateway, &group, &["--max-records", "4", "--dead-letter-on", r#""n": -\d"#]);
    assert_eq!(printed(&output), [(0, 0), (1, 0), (2, 0), (3, 0)], "they are printed like the others");
    committed_to_the_end(kafka, &group, &topic).await;
    let went = kafka.stored(&letters, 0);
    let told: Vec<_> =
        went.iter().map(|letter| (letter.value.as_deref(), letter.header("__dlq.errors.message"))).collect();
    let why = Some(r#"its value matches "n": -\d"#);
    assert_eq!(told, [(Some(values[1].as_bytes()), why), (Some(values[3].as_bytes()), why)]);
    assert_eq!(gateway.stats(&group).await.acked, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn consume_retries_after_the_delay_that_it_is_told_and_says_when_the_gateway_does_not_take_it() {
    let kafka = broker();
    let topic = kafka.topic("delayed", 1);
    kafka.fill(&topic, 1, 1, 32);
    let group = unique("delayed");
    let never = "retry = { initial_backoff = \"1h\", max_backoff = \"1h\" }";
    let gateway = gateway(&group, &topic, &[never, "max_retry_delay = \"10m\""]);
    let soon = consume(&gateway, &group, &["--max-records", "2", "--ack", "retry", "--delay", "10ms"]);
    assert_eq!(printed(&soon), [(0, 0), (0, 1)]);
    let late = consume(&gateway, &group, &["--max-records", "1", "--ack", "retry", "--delay", "10m"]);
    assert_eq!(printed(&late), [(0, 2)]);
    kafka.fill(&topic, 1, 1, 32);
    let refused = consume(&gateway, &group, &["--max-records", "1", "--ack", "retry", "--delay", "11m"]);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("max_retry_delay"), "{told}");
    eventually("both wait", SOON, async || {
        let partition = gateway.partitions(&group).await.remove(0);
        if partition.waiting_retry == 2 { Ok(()) } else { Err(partition) }
    })
    .await;
}
