//! Records that their workers die of, and balancers that only look like it.

use std::process::{Command, Stdio};

use sluice_proto::v1::Subscribe;
use sluice_tests::process;
use sluice_tests::wire::{Wire, subscribe};
use sluice_tests::{SOON, Way, broker, eventually, unique};
use tonic::transport::Channel;

use crate::{committed_to_the_end, gateway};

/// It has a hundred others in its window.
const POISON: i64 = 40;
const ALL: usize = 101;
const ATTEMPTS: usize = 3;

fn policy(dead_letters: &str) -> [String; 2] {
    let retry = format!(
        "retry = {{ max_attempts = {ATTEMPTS}, initial_backoff = \"10ms\", max_backoff = \"50ms\", \
         on_exhausted = \"dead_letter\" }}"
    );
    [retry, format!("dead_letter_topic = \"{dead_letters}\"")]
}

/// Processes one after the other, each of which dies of the record, until it is a dead letter. Gives how many died.
async fn dies_until_it_is_a_dead_letter(name: &str, consumer_id: &str) -> usize {
    let kafka = broker();
    let (topic, dead_letters) = (kafka.topic(name, 1), kafka.topic(&format!("{name}-dead"), 1));
    let produced = kafka.fill(&topic, 1, ALL, 32);
    let group = unique(name);
    let lines = policy(&dead_letters);
    let gateway = gateway(&group, &topic, &[&lines[0], &lines[1], "resume_timeout = \"1s\""]);
    let mut deaths = 0;
    let letters = loop {
        let letters = kafka.read(&dead_letters, 0);
        if !letters.is_empty() {
            break letters;
        }
        let mut worker = Command::new(env!("CARGO_BIN_EXE_sluice-test-client"));
        worker.args([gateway.address(), &group, &ALL.to_string(), consumer_id, &POISON.to_string()]);
        worker.stdout(Stdio::null()).stderr(Stdio::null());
        let mut worker = process::spawn(worker).expect("start a worker");
        let ended = eventually("the worker dies, or the record is a dead letter", SOON, async || {
            let status = worker.try_wait().expect("its status");
            let is_letter = !kafka.read(&dead_letters, 0).is_empty();
            if status.is_some() || is_letter { Ok(status) } else { Err("it lives") }
        })
        .await;
        match ended {
            Some(_) => deaths += 1,
            None => {
                worker.kill().expect("kill");
                worker.wait().expect("its end");
            }
        }
    };
    assert_eq!(letters.len(), 1, "and no innocent is one");
    let poison = produced.iter().find(|one| one.offset == POISON).expect("it was produced");
    assert_eq!(letters[0].1, poison.value);
    let mut last = Wire::subscribe(&gateway, &group, 1_000).await;
    let stats = loop {
        let stats = gateway.stats(&group).await;
        if stats.acked + stats.dead_lettered >= ALL as u64 {
            break stats;
        }
        let records = last.records(1).await;
        last.ack(&records);
    };
    assert_eq!((stats.dead_lettered, stats.failed), (1, 1));
    committed_to_the_end(kafka, &group, &topic).await;
    deaths
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_its_workers_die_of_is_a_dead_letter_after_two_deaths_and_the_attempts() {
    assert_eq!(dies_until_it_is_a_dead_letter("poison", "").await, 2 + ATTEMPTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_started_again_under_its_name_dies_no_more_often() {
    let deaths = dies_until_it_is_a_dead_letter("poison-named", &unique("worker")).await;
    assert_eq!(deaths, 2 + ATTEMPTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_that_cuts_all_streams_again_and_again_marks_nobody() {
    const SESSIONS: usize = 10;
    const CUTS: usize = 5;
    let kafka = broker();
    let (topic, dead_letters) = (kafka.topic("cut", 1), kafka.topic("cut-dead", 1));
    let produced = kafka.fill(&topic, 1, 1_000, 32);
    let group = unique("cut");
    let lines = policy(&dead_letters);
    let gateway = gateway(&group, &topic, &[&lines[0], &lines[1], "ack_timeout = \"10m\""]);
    let way = Way::to(gateway.address()).await;
    for _ in 0..CUTS {
        let mut sessions = Vec::new();
        for _ in 0..SESSIONS {
            let address = format!("http://{}", way.address());
            let channel = Channel::from_shared(address).expect("an address").connect().await.expect("connect");
            let mut wire = Wire::open(channel, subscribe(&group, 10)).await.expect("subscribe");
            let records = wire.records(10).await;
            assert!(records.iter().all(|lease| lease.attempts == 0), "nobody failed: {records:?}");
            sessions.push(wire);
        }
        way.cut();
        eventually("they are all gone", SOON, async || {
            let left = gateway.consumers(&group).await.len();
            if left == 0 { Ok(()) } else { Err(left) }
        })
        .await;
        eventually("nothing of theirs is left open", SOON, async || {
            let all = gateway.partitions(&group).await;
            let waiting: i64 = all.iter().map(|one| one.waiting_retry).sum();
            if waiting == 0 { Ok(()) } else { Err(all) }
        })
        .await;
    }
    let first = Subscribe { consumer_id: unique("last"), ..subscribe(&group, 1_000) };
    let mut last = Wire::connect(&gateway, first).await;
    let records = last.records(produced.len()).await;
    assert!(records.iter().all(|lease| lease.attempts == 0));
    assert!(
        records.windows(2).filter(|pair| pair[0].sequence != pair[1].sequence).count() < 50,
        "no suspect among them"
    );
    last.ack(&records);
    committed_to_the_end(kafka, &group, &topic).await;
    assert_eq!(gateway.stats(&group).await.failed, 0);
    assert!(kafka.read(&dead_letters, 0).is_empty());
}
