//! Owners that come and go all the time.

use std::time::Duration;

use sluice_tests::process::Signal;
use sluice_tests::{Crew, Fault, Gateway, History, broker, unique};
use tokio::time::{Instant, sleep_until};

use super::{Load, all_work_on_all, cluster, ends_well};
use crate::lanes::Dice;

const NODES: usize = 4;
const SESSIONS: usize = 12;
const PARTITIONS: i32 = 6;
const TURNS: u32 = 30;

#[tokio::test(flavor = "multi_thread")]
async fn owners_that_move_every_two_seconds_again_and_again_lose_nothing() {
    let dice = Dice::new();
    let turns = std::env::var("SLUICE_TURNS").ok().and_then(|turns| turns.parse().ok()).unwrap_or(TURNS);
    let kafka = broker();
    let topic = kafka.topic("moving", PARTITIONS);
    let group = unique("moving");
    let mut cluster = cluster(NODES, &group, &topic, &[]).await;
    let history = History::default();
    let crew = Crew::by(&cluster.address(), &group, &history).window(5).work(Duration::from_millis(20)).start(SESSIONS);
    cluster.spread(&group, 6, NODES).await;
    let load = Load::start(kafka, &topic, PARTITIONS);

    let start = Instant::now();
    let (mut faults, mut story) = (Vec::new(), Vec::new());
    for turn in 1..=turns {
        sleep_until(start + turn * Duration::from_secs(2)).await;
        let (up, down): (Vec<usize>, Vec<usize>) = (0..NODES).partition(|at| cluster.nodes[*at].is_running());
        let pick = |of: &[usize]| of[usize::try_from(dice.roll(of.len() as u64)).expect("small")];
        let comes = up.len() == 2 || (!down.is_empty() && dice.roll(2) == 0);
        if comes {
            let at = pick(&down);
            story.push(format!("{at} comes"));
            cluster.nodes[at].restart();
            continue;
        }
        // Whoever owns something, if anybody does just now.
        let seen = cluster.nodes[up[0]].partitions(&group).await;
        let owners: Vec<usize> = seen.iter().filter_map(|one| one.node.strip_prefix("node-")?.parse().ok()).collect();
        let owners: Vec<usize> = owners.into_iter().filter(|at| up.contains(at)).collect();
        let at = pick(if owners.is_empty() { &up } else { &owners });
        if dice.roll(3) == 0 {
            story.push(format!("{at} dies"));
            faults.push(Fault::during(|| cluster.nodes[at].kill()));
        } else {
            story.push(format!("{at} goes"));
            cluster.nodes[at].signal(Signal::Term);
            assert!(cluster.nodes[at].ended().await.success(), "a drain ends with status 0");
        }
    }
    println!("{}", story.join(", "));
    cluster.nodes.iter_mut().filter(|node| !node.is_running()).for_each(Gateway::restart);
    cluster.knows(NODES - 1).await;
    cluster.spread(&group, 6, NODES).await;
    let mut produced = all_work_on_all(&history, SESSIONS, kafka, &topic, PARTITIONS).await;
    produced.extend(load.stop().await);
    let epochs = history.epochs();
    let moves: usize = epochs.values().map(|of| of.len() - 1).sum();
    let twice = history.duplicates().len();
    println!("{moves} moves of {} partitions, {} kills, {twice} records dealt twice", epochs.len(), faults.len());
    assert!(moves >= 10, "{epochs:?}");
    ends_well(kafka, &group, &topic, &history, &produced, &faults).await;
    crew.stop().await;
}
