//! The checker is tested too: each planted bug must be caught, from inputs and outputs alone, and the same story without
//! the bug must be clean.

use sluice_core::{
    Epoch, Millis, OffsetRange, Outcome, Policy, RevokeReason, SessionId, Settlements, TopicPartition, Window,
};

use crate::support::client;
use crate::support::plant::Plant;
use crate::support::world::World;

fn policy() -> Policy {
    Policy { ack_timeout_ms: 1_000, resume_timeout_ms: 300, ..Policy::default() }
}

/// What the checker says of a story with the bug; the story without it must pass.
fn caught(plant: Plant, story: impl Fn(&mut World)) -> Vec<String> {
    caught_under(&policy(), plant, story)
}

fn caught_under(policy: &Policy, plant: Plant, story: impl Fn(&mut World)) -> Vec<String> {
    let mut sound = World::new(policy.clone(), 1, Plant::Nothing);
    story(&mut sound);
    let mut sick = World::new(policy.clone(), 1, plant);
    story(&mut sick);
    let said = sick.driver.model.violations;
    assert!(!said.is_empty(), "{plant:?} was not caught");
    said
}

fn says(said: &[String], words: &str) {
    assert!(said.iter().any(|s| s.contains(words)), "nothing says {words:?}: {said:#?}");
}

impl World {
    fn one(&self) -> TopicPartition {
        self.topics[0].clone()
    }

    /// Records 0 to n − 1, and one session that holds them.
    fn begin(&mut self, n: usize) -> SessionId {
        let session = self.open(client::open(Some("a"), 10));
        let tp = self.one();
        self.kafka.produce(&tp, &vec![0; n], 0);
        self.fetch(&tp, n, false);
        session
    }

    fn say(&mut self, session: SessionId, seen: u64, first: i64, last: i64, outcome: Outcome) {
        let epoch = self.owned.get(&self.one()).map_or(Epoch(1), |o| o.epoch);
        let leases = client::leases(&self.one(), epoch, vec![OffsetRange { first, last }]);
        self.settle(session, client::frame(seen, leases, outcome));
    }

    fn commit_round(&mut self) {
        self.advance(300);
        self.answer_all_commits();
    }
}

#[test]
fn a_commit_on_delivery_is_caught() {
    let said = caught(Plant::CommitOnDelivery, |world| {
        let session = world.begin(5);
        world.say(session, 1, 0, 1, Outcome::Ack);
        world.commit_round();
    });
    says(&said, "which is not done");
    says(&said, "was never done");
}

#[test]
fn a_commit_of_the_highest_ack_is_caught() {
    let said = caught(Plant::CommitHighestAcked, |world| {
        let session = world.begin(5);
        world.say(session, 1, 0, 0, Outcome::Ack);
        world.say(session, 1, 3, 3, Outcome::Ack);
        world.commit_round();
    });
    says(&said, "which is not done");
}

#[test]
fn a_frontier_that_stops_at_a_hole_is_caught() {
    let said = caught(Plant::StopAtAHole, |world| {
        let session = world.begin(2);
        let tp = world.one();
        world.kafka.produce(&tp, &[3, 0], 0);
        world.fetch(&tp, 10, false);
        world.ack_all(session);
        world.finale();
    });
    says(&said, "forgotten");
}

#[test]
fn a_commit_that_forgets_what_is_done_above_the_frontier_is_caught() {
    let said = caught(Plant::CommitWithoutMetadata, |world| {
        let session = world.begin(5);
        world.say(session, 1, 2, 3, Outcome::Ack);
        world.commit_round();
        world.crash();
        world.begin(0);
        world.fetch(&world.one(), 10, false);
    });
    says(&said, "is done");
}

#[test]
fn an_old_range_that_swallows_a_record_dealt_again_is_caught() {
    let said = caught(Plant::IgnoreSeen, |world| {
        let session = world.begin(3);
        world.say(session, 1, 1, 1, client::retry_now());
        world.advance(2);
        world.say(session, 1, 0, 2, Outcome::Ack);
        // The client works off the second delivery, and fails again.
        world.say(session, 2, 1, 1, client::retry_now());
        world.commit_round();
        world.answer_all_commits();
    });
    says(&said, "passes 1, which is not done");
}

#[test]
fn a_settlement_of_another_life_that_counts_is_caught() {
    let said = caught(Plant::AcceptAStaleEpoch, |world| {
        let session = world.begin(3);
        let (tp, old) = (world.one(), world.owned[&world.one()].epoch);
        world.lose(&tp, RevokeReason::Reassigned);
        world.assign(&tp);
        world.fetch(&tp, 10, false);
        let leases = client::leases(&tp, old, vec![OffsetRange { first: 0, last: 2 }]);
        world.settle(session, client::frame(9, leases, Outcome::Ack));
        world.commit_round();
    });
    says(&said, "Stale");
    says(&said, "which is not done");
}

#[test]
fn an_expiry_that_never_comes_is_caught() {
    let said = caught(Plant::ForgetExpiry, |world| {
        world.begin(3);
        world.advance(1_000);
    });
    says(&said, "its holder heard nothing");
}

#[test]
fn a_revocation_in_silence_is_caught() {
    let said = caught(Plant::RevokeInSilence, |world| {
        world.begin(3);
        world.lose(&world.one(), RevokeReason::Reassigned);
    });
    says(&said, "its holder heard nothing");
}

#[test]
fn a_window_doubled_by_a_reconnect_is_caught() {
    let said = caught(Plant::DoubleTheWindowOnReconnect, |world| {
        let session = world.begin(30);
        world.close(session, sluice_core::End::Broken);
        world.open(client::open(Some("a"), 10));
    });
    says(&said, "max_records: 10");
}

#[test]
fn an_ack_dropped_while_its_partition_is_handed_over_is_caught() {
    let said = caught(Plant::DropAcksAtRevoke, |world| {
        let session = world.begin(3);
        let deadline = Millis(world.driver.now().0 + 500);
        world.driver.revoking(&[world.one()], deadline);
        world.absorb();
        world.say(session, 1, 0, 2, Outcome::Ack);
        world.answer_all_commits();
        world.advance(500);
        world.answer_all_commits();
    });
    says(&said, "heard that");
}

#[test]
fn a_record_that_two_frames_carry_is_caught() {
    let said = caught(Plant::DeliverTwice, |world| {
        world.begin(3);
    });
    says(&said, "is leased by");
}

#[test]
fn a_dead_letter_that_is_done_before_kafka_has_it_is_caught() {
    let policy = Policy { dead_letter_topic: true, ..policy() };
    let said = caught_under(&policy, Plant::DoneBeforeTheLetterIsWritten, |world| {
        let session = world.begin(3);
        world.say(session, 1, 0, 1, Outcome::DeadLetter { reason: String::new() });
        world.commit_round();
    });
    says(&said, "which is not done");
}

fn durable(world: &mut World, session: SessionId, offset: i64) {
    let epoch = world.owned[&world.one()].epoch;
    let leases = client::leases(&world.one(), epoch, vec![OffsetRange::one(offset)]);
    let frame = Settlements { request_id: 4, durable: true, ..client::frame(9, leases, Outcome::Ack) };
    world.settle(session, frame);
}

#[test]
fn a_durable_answer_before_kafkas_is_caught() {
    let said = caught(Plant::AnswerDurableAtOnce, |world| {
        let session = world.begin(5);
        durable(world, session, 3);
    });
    says(&said, "no acknowledged commit has it");
}

#[test]
fn a_durable_record_forgotten_when_the_metadata_fills_is_caught() {
    let policy = Policy { metadata_units_max: 24, ..policy() };
    let said = caught_under(&policy, Plant::StripWhatDoesNotFit, |world| {
        let session = world.begin(9);
        durable(world, session, 8);
        world.answer_all_commits();
        let tp = world.one();
        world.kafka.produce(&tp, &[0; 60], 0);
        world.fetch(&tp, 60, false);
        world.driver.window(session, Window { max_records: 100, max_bytes: 0 });
        world.absorb();
        for offset in (10..60).step_by(3) {
            world.say(session, 9, offset, offset, Outcome::Ack);
        }
        world.commit_round();
        world.crash();
        world.begin(0);
        world.fetch(&tp, 100, false);
    });
    says(&said, "is done");
}

/// Two workers hold records, and their streams break at the same moment, again and again.
fn cuts(world: &mut World, times: usize, apart: u64) {
    let tp = world.one();
    world.kafka.produce(&tp, &[0; 6], 0);
    world.fetch(&tp, 6, false);
    for _ in 0..times {
        let both = [world.open(client::open(None, 3)), world.open(client::open(None, 3))];
        for session in both {
            world.advance(apart);
            world.close(session, sluice_core::End::Broken);
        }
        world.advance(60_000);
    }
    world.open(client::open(None, 10));
    world.advance(1);
}

#[test]
fn a_balancer_taken_for_a_record_that_kills_is_caught() {
    let said = caught(Plant::BlameTheBalancer, |world| cuts(world, 4, 1));
    says(&said, "attempts 1, should be 0 to 0");
}

#[test]
fn a_record_that_kills_and_is_dealt_on_with_others_is_caught() {
    let said = caught(Plant::TrustTheDead, |world| cuts(world, 4, 5_000));
    says(&said, "suspects among");
}

#[test]
fn an_attempt_counted_for_a_release_is_caught() {
    let said = caught(Plant::CountReleases, |world| {
        let session = world.begin(1);
        world.say(session, 1, 0, 0, Outcome::Release);
        world.advance(200);
    });
    says(&said, "attempts 1, should be 0 to 0");
}

#[test]
fn a_frame_that_is_not_answered_is_caught() {
    let mut world = World::new(policy(), 1, Plant::DropAcksAtRevoke);
    let session = world.begin(1);
    world.driver.revoking(&[world.one()], Millis(500));
    world.absorb();
    let leases = client::leases(&world.one(), world.owned[&world.one()].epoch, vec![OffsetRange::one(0)]);
    let frame = Settlements { request_id: 4, ..client::frame(1, leases, Outcome::Ack) };
    world.settle(session, frame);
    says(&world.driver.model.violations, "was not answered");
}
