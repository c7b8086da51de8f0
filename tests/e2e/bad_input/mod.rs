//! Clients that lie, flood and break the contract, records that nobody expects, and commits of others: each gets the
//! contract's answer, the gateway lives, and everybody else goes on and loses nothing.

mod metadata;
mod records;
mod settlements;
mod streams;
mod transport;

use sluice_proto::v1::consume_request::Request;
use sluice_proto::v1::{Leases, OffsetRange, Settlements};
use sluice_tests::kafka::client::Produced;
use sluice_tests::wire::{Lease, Wire, ack, settlement};
use sluice_tests::{Gateway, History, broker, unique};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{committed_to_the_end, gateway, lag_is_zero};

/// What a client should make of an end: the code, the reason, and whether trying again helps.
type Verdict = (Code, String, bool);

fn verdict(status: &Status) -> Verdict {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    (status.code(), reason, details.retry_info().is_some())
}

fn stop(code: Code, reason: &str) -> Verdict {
    (code, reason.to_owned(), false)
}

fn back_off(reason: &str) -> Verdict {
    (Code::ResourceExhausted, reason.to_owned(), true)
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// Settlements of so many ranges that each name everything, and more than the one before.
fn everything(ranges: usize, topic: &str, epoch: i64) -> Settlements {
    let to = (1 << 60)..;
    let offsets = to.take(ranges).map(|last| OffsetRange { first: 0, last: Some(last) }).collect();
    let leases = Leases { topic: topic.to_owned(), partition: 0, epoch, offsets };
    Settlements { seen: 1, settlements: vec![settlement(leases, ack())], ..Settlements::default() }
}

fn of_bytes(bytes: usize) -> Option<Request> {
    let leases = Leases { topic: "x".repeat(bytes), ..Leases::default() };
    let settlements = vec![settlement(leases, ack())];
    Some(Request::Settle(Settlements { settlements, ..Settlements::default() }))
}

/// A gateway and a client that does nothing wrong, while others do: it holds ten records of fifty.
struct Bystander {
    gateway: Gateway,
    group: String,
    topic: String,
    wire: Wire,
    held: Vec<Lease>,
    produced: Vec<Produced>,
    history: History,
    pid: u32,
}

impl Bystander {
    async fn of(name: &str) -> Self {
        let kafka = broker();
        let topic = kafka.topic(name, 1);
        let produced = kafka.fill(&topic, 1, 50, 32);
        let group = unique(name);
        let gateway = gateway(&group, &topic, &[]);
        let history = History::default();
        let mut wire = Wire::subscribe(&gateway, &group, 10).await.recorded(&history);
        let held = wire.records(10).await;
        let pid = gateway.pid();
        Self { gateway, group, topic, wire, held, produced, history, pid }
    }

    /// It is still served, by the same process.
    async fn is_served(&mut self) {
        self.wire.barrier().await;
        assert_eq!(self.gateway.pid(), self.pid);
    }

    /// It settles what it held all the time and is dealt all the rest: nothing is lost, and nothing came twice.
    async fn loses_nothing(mut self) {
        let kafka = broker();
        self.wire.ack(&self.held);
        while self.history.acked_of(&self.produced) < self.produced.len() {
            let mut more = self.wire.records(1).await;
            more.extend(self.wire.inbox.drain(..));
            self.wire.ack(&more);
        }
        committed_to_the_end(kafka, &self.group, &self.topic).await;
        lag_is_zero(&self.gateway, &self.group).await;
        self.history.check_no_loss(&self.produced);
        self.history.check_no_duplicates();
        self.history.check_commits(kafka, &self.group, &self.produced);
        assert_eq!(self.gateway.metric("sluice_invariants_broken_total", "").unwrap_or(0.0), 0.0);
    }
}
