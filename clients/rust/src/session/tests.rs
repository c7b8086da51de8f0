use sluice_proto::v1::{
    Batch, ConsumeResponse, Delivery, Drain, OffsetRange, Settled, Subscribed, consume_request::Request,
    consume_response::Response, settlement::Outcome as WireOutcome,
};

use super::*;
use crate::{event::RevokeReason, ranges};

mod durable;
mod extending;
mod simulation;

const EPOCH: i64 = 77;

/// A session with what the application would see of it.
struct Harness {
    session: Session,
    commands: mpsc::UnboundedReceiver<Command>,
    records: BTreeMap<i64, Record>,
    events: Vec<Event>,
    now: Instant,
    sequence: u64,
}

impl Harness {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            subscription: "orders".to_owned(),
            consumer_id: "me".to_owned(),
            ack_timeout: None,
            max_frame_bytes: 0,
            report_commits: false,
            durable: false,
            extend_while_held: None,
            labels: HashMap::new(),
        };
        change(&mut settings);
        let (sender, commands) = mpsc::unbounded_channel();
        let session = Session::new(settings, Flow { max_records: 100, max_bytes: 0 }, sender);
        let mut harness =
            Self { session, commands, records: BTreeMap::new(), events: Vec::new(), now: Instant::now(), sequence: 0 };
        harness.subscribe(vec![]);
        harness
    }

    fn subscribe(&mut self, held: Vec<v1::Leases>) -> v1::Subscribe {
        let Some(Request::Subscribe(first)) = self.session.subscribe().request else { panic!("first frame") };
        let ack_timeout = Some(prost_types::Duration { seconds: 40, nanos: 0 });
        let session_id = "a-session".to_owned();
        self.handle(Response::Subscribed(Subscribed { session_id, held, ack_timeout, ..Default::default() }));
        first
    }

    fn handle(&mut self, response: Response) {
        self.session.handle(ConsumeResponse { response: Some(response) }, self.now);
        self.pump();
    }

    fn pump(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Say { lease, verb, durable, waiter } => {
                    self.session.say(&lease, verb, durable, waiter, self.now);
                }
                Command::Keep { lease, limit } => self.session.keep(&lease, limit, self.now),
                Command::HandOver(lease) => self.session.hand_over(&lease),
                Command::Window(_) | Command::Flush(_) | Command::Close { .. } => panic!("only of leases"),
            }
        }
        while let Some(output) = self.session.next_output() {
            match output {
                // Kept in the queue: `take` is what the application does.
                Output::Record(record) => drop(self.records.insert(record.offset(), record)),
                Output::Event(event) => self.events.push(event),
                Output::Subscribed(_) | Output::Drain(_) => {}
            }
        }
    }

    fn deliver(&mut self, offsets: &[i64]) {
        self.sequence += 1;
        let records = offsets.iter().map(|offset| v1::Record { offset: *offset, ..Default::default() }).collect();
        let batch = Batch { topic: "orders".to_owned(), partition: 1, epoch: EPOCH, records };
        self.handle(Response::Delivery(Delivery { sequence: self.sequence, batches: vec![batch] }));
    }

    /// Time goes on, and the task extends what it extends.
    fn after(&mut self, seconds: u64) -> Vec<v1::Settlements> {
        self.now += Duration::from_secs(seconds);
        self.session.extend_held(self.now);
        self.written()
    }

    fn take(&mut self, offset: i64) -> Record {
        let record = self.records.remove(&offset).unwrap();
        assert!(record.give(), "{offset} was taken back");
        record
    }

    fn ack(&mut self, offsets: &[i64]) {
        for offset in offsets {
            self.take(*offset).ack();
        }
        self.pump();
    }

    /// All settle frames that are due, as (request, seen, settlements).
    fn written(&mut self) -> Vec<v1::Settlements> {
        self.pump();
        let mut written = Vec::new();
        while let Some(frame) = self.session.next_frame() {
            if let Some(Request::Settle(settlements)) = frame.request {
                written.push(settlements);
            }
        }
        written
    }

    fn answer(&mut self, request_id: u64, rejections: Vec<v1::Rejection>) {
        self.handle(Response::Settled(Settled { request_id, rejections }));
    }
}

fn leases(ranges: &[(i64, i64)]) -> v1::Leases {
    let offsets = ranges.iter().map(|(first, last)| OffsetRange { first: *first, last: Some(*last) }).collect();
    v1::Leases { topic: "orders".to_owned(), partition: 1, epoch: EPOCH, offsets }
}

fn rejection(ranges: &[(i64, i64)], reason: v1::RejectReason) -> v1::Rejection {
    v1::Rejection { leases: Some(leases(ranges)), reason: reason.into() }
}

fn ranges_of(settlement: &v1::Settlement) -> Vec<(i64, i64)> {
    settlement.leases.as_ref().unwrap().offsets.iter().filter_map(ranges::bounds).collect()
}

fn is_ack(settlement: &v1::Settlement) -> bool {
    matches!(settlement.outcome, Some(WireOutcome::Ack(_)))
}

#[test]
fn acks_fold_over_what_others_have_and_never_over_what_is_held() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 5, 9, 11]);
    harness.ack(&[11, 1, 5, 2]);
    let written = harness.written();
    assert_eq!(written.len(), 1);
    assert_eq!(written[0].seen, 1);
    // 3 and 4 were dealt to others; 9 is ours and undone.
    assert_eq!(ranges_of(&written[0].settlements[0]), [(1, 5), (11, 11)]);
}

#[test]
fn an_ack_does_not_swallow_a_record_that_is_retried_in_the_same_frame() {
    let mut harness = Harness::new();
    harness.deliver(&[10, 11, 12]);
    harness.take(11).retry_after(Duration::ZERO);
    harness.ack(&[10, 12]);
    let written = harness.written();
    let ack = written[0].settlements.iter().find(|settlement| is_ack(settlement)).unwrap();
    assert_eq!(ranges_of(ack), [(10, 10), (12, 12)]);
}

#[test]
fn a_record_dealt_again_is_held_apart_from_its_settlement_before() {
    let mut harness = Harness::new();
    harness.deliver(&[10, 11, 12]);
    harness.take(11).retry_after(Duration::ZERO);
    let first = harness.written();
    // It comes again before the answer to the retry does.
    harness.deliver(&[11]);
    harness.answer(first[0].request_id, vec![]);
    harness.ack(&[10, 12]);
    let written = harness.written();
    assert_eq!(written[0].seen, 2);
    assert_eq!(ranges_of(&written[0].settlements[0]), [(10, 10), (12, 12)]);
    harness.ack(&[11]);
    assert_eq!(ranges_of(&harness.written()[0].settlements[0]), [(11, 11)]);
}

#[test]
fn a_dropped_record_is_released_and_a_queued_one_is_not_touched() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2]);
    drop(harness.take(1));
    drop(harness.records.remove(&2));
    let written = harness.written();
    assert_eq!(written.len(), 1);
    assert!(matches!(written[0].settlements[0].outcome, Some(WireOutcome::Release(_))));
    assert_eq!(ranges_of(&written[0].settlements[0]), [(1, 1)]);
}

#[test]
fn a_revoked_record_is_marked_and_its_ack_is_rejected_here() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 3]);
    let given = harness.take(2);
    let revoked = v1::Revoked { leases: Some(leases(&[(2, 3)])), reason: v1::RevokeReason::Expired.into() };
    harness.handle(Response::Revoked(revoked));
    assert!(given.is_revoked());
    assert!(!harness.records.remove(&3).unwrap().give(), "a queued one is never given");
    given.ack();
    assert!(harness.written().is_empty());
    assert!(matches!(
        &harness.events[..],
        [
            Event::Connected { .. },
            Event::Revoked { reason: RevokeReason::Expired, .. },
            Event::Rejected { reason: RejectReason::NotHeld, .. },
        ]
    ));
}

#[test]
fn what_was_not_kept_over_a_break_is_dropped_and_what_was_not_answered_is_said_again() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 3, 4]);
    let lost = harness.take(3);
    let kept = harness.take(4);
    harness.ack(&[1]);
    let before = harness.written();
    // The answer is lost with the connection. 2 is still queued.
    let subscribe = harness.subscribe(vec![leases(&[(2, 2), (4, 4)])]);
    assert_eq!(subscribe.seen, 1);
    assert_eq!(subscribe.holding, [leases(&[(1, 4)])]);
    assert!(lost.is_revoked() && !kept.is_revoked());
    let again = harness.written();
    assert_eq!(again, before);
    assert!(!harness.session.is_settled());
    harness.answer(again[0].request_id, vec![]);
    harness.ack(&[2]);
    kept.ack();
    let rest = harness.written();
    assert_eq!(ranges_of(&rest[0].settlements[0]), [(2, 4)]);
    harness.answer(rest[0].request_id, vec![]);
    assert!(harness.session.is_settled());
}

#[test]
fn holding_claims_no_hole() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 5]);
    let subscribe = harness.subscribe(vec![leases(&[(1, 5)])]);
    let claimed: Vec<_> = subscribe.holding[0].offsets.iter().filter_map(ranges::bounds).collect();
    assert_eq!(claimed, [(1, 2), (5, 5)]);
}

#[test]
fn a_refused_dead_letter_is_retried_instead_of_left_to_expire() {
    let mut harness = Harness::new();
    harness.deliver(&[1]);
    harness.take(1).dead_letter("cannot be read");
    let written = harness.written();
    harness.answer(written[0].request_id, vec![rejection(&[(1, 1)], v1::RejectReason::Invalid)]);
    let instead = harness.written();
    let expected = v1::Retry { delay: None, reason: "cannot be read".to_owned() };
    assert_eq!(instead[0].settlements[0].outcome, Some(WireOutcome::Retry(expected)));
    assert!(matches!(harness.events.last(), Some(Event::Rejected { reason: RejectReason::Invalid, .. })));
    // Refused once more, it is left alone.
    harness.answer(instead[0].request_id, vec![rejection(&[(1, 1)], v1::RejectReason::Invalid)]);
    assert!(harness.written().is_empty());
}

#[test]
fn a_rejection_of_what_the_request_did_not_name_is_ignored() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2, 3]);
    harness.take(2).retry();
    let retry = harness.written();
    harness.answer(retry[0].request_id, vec![]);
    harness.ack(&[1, 3]);
    let written = harness.written();
    assert_eq!(ranges_of(&written[0].settlements[0]), [(1, 3)]);
    harness.answer(written[0].request_id, vec![rejection(&[(2, 2)], v1::RejectReason::NotHeld)]);
    assert!(!harness.events.iter().any(|event| matches!(event, Event::Rejected { .. })));
    assert!(harness.session.is_settled());
}

#[test]
fn a_drain_gives_back_what_is_queued_and_waits_for_the_rest() {
    let mut harness = Harness::new();
    harness.deliver(&[1, 2]);
    let given = harness.take(1);
    harness.handle(Response::Drain(Drain::default()));
    let released = harness.written();
    assert!(matches!(released[0].settlements[0].outcome, Some(WireOutcome::Release(_))));
    assert_eq!(ranges_of(&released[0].settlements[0]), [(2, 2)]);
    harness.answer(released[0].request_id, vec![]);
    assert!(!harness.session.is_settled());
    given.ack();
    let acked = harness.written();
    harness.answer(acked[0].request_id, vec![]);
    assert!(harness.session.is_settled());
}

#[test]
fn a_frame_never_grows_beyond_the_split() {
    use prost::Message as _;
    let mut harness = Harness::new();
    let offsets: Vec<i64> = (0..40_000).map(|n| (1 << 62) + 2 * n).collect();
    harness.deliver(&offsets);
    // Every second one stays held, so that nothing folds.
    let acked: Vec<i64> = offsets.iter().copied().step_by(2).collect();
    harness.ack(&acked);
    let written = harness.written();
    assert!(written.len() > 1);
    assert!(written.iter().all(|frame| frame.encoded_len() <= wire::SETTLE_BYTES_MAX));
    let ranges: usize = written.iter().flat_map(|frame| &frame.settlements).map(|s| ranges_of(s).len()).sum();
    assert_eq!(ranges, acked.len());
}

#[test]
fn a_ping_is_answered_before_anything_else() {
    let mut harness = Harness::new();
    harness.deliver(&[1]);
    harness.ack(&[1]);
    harness.handle(Response::Ping(v1::Ping {}));
    let frame = harness.session.next_frame().unwrap();
    assert!(matches!(frame.request, Some(Request::Pong(_))));
}

#[test]
fn after_closing_what_still_comes_goes_back() {
    let mut harness = Harness::new();
    harness.session.close();
    assert!(matches!(harness.session.next_frame().unwrap().request, Some(Request::Flow(Flow { max_records: 0, .. }))));
    harness.deliver(&[1, 2]);
    assert!(harness.records.is_empty());
    let written = harness.written();
    assert!(matches!(written[0].settlements[0].outcome, Some(WireOutcome::Release(_))));
    assert_eq!(ranges_of(&written[0].settlements[0]), [(1, 2)]);
}
