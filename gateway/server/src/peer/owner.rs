//! What this node serves to edges: their sessions, as its engines have them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluice_core::{End, Millis, NextOffset, TopicPartition};
use sluice_proto::peer::v1::relay_request::Request as Wire;
use sluice_proto::peer::v1::relay_response::Response as ToEdge;
use sluice_proto::peer::v1::relay_service_server::RelayService;
use sluice_proto::peer::v1::{self as pb, RelayRequest};
use sluice_proto::v1::PartitionOffset;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::{Request, Response, Status, Streaming};

use super::found::HeardFrom;
use super::outbox::{Outbox, Responses, outbox};
use super::{Shared, wire};
use crate::error::Error;
use crate::next::{Spoken, spoken};
use crate::services::place;
use crate::session::{Decoder, Flood, Frame, Input, Link, Profile, all_not_held, window};
use crate::subscription::{Handle, Pause, Request as Ask, clock};

/// Sessions that one edge may have on one connection.
const SESSIONS_MAX: usize = 1 << 16;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    shared: Arc<Shared>,
}

/// Reads one connection of an edge.
struct Reader {
    shared: Arc<Shared>,
    inbound: Streaming<RelayRequest>,
    sessions: HashMap<u64, (Arc<Link>, Arc<Handle>)>,
    decoder: Decoder,
    outbox: Outbox,
    ended: mpsc::UnboundedReceiver<u64>,
    edge: String,
    /// It said where it is found.
    heard: Option<HeardFrom>,
}

// === impl Owner ===

impl Owner {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn handle(&self, subscription: &str) -> Result<Arc<Handle>, Error> {
        let edge = self.shared.edges.get(subscription);
        edge.map(|edge| edge.handle.clone()).ok_or_else(|| Error::SubscriptionNotFound(subscription.to_owned()))
    }
}

#[tonic::async_trait]
impl RelayService for Owner {
    type RelayStream = Spoken<Responses>;

    async fn relay(&self, request: Request<Streaming<RelayRequest>>) -> Result<Response<Spoken<Responses>>, Status> {
        let (ended_sender, ended) = mpsc::unbounded_channel();
        let (outbox, responses) = outbox(self.shared.status.clone(), ended_sender);
        let reader = Reader {
            shared: self.shared.clone(),
            inbound: request.into_inner(),
            sessions: HashMap::new(),
            decoder: Decoder::default(),
            outbox,
            ended,
            edge: String::new(),
            heard: None,
        };
        tokio::spawn(reader.run());
        Ok(Response::new(spoken(responses)))
    }

    async fn settle(&self, request: Request<pb::SettleRequest>) -> Result<Response<pb::SettleResponse>, Status> {
        let pb::SettleRequest { token, durable, settlements, seen } = request.into_inner();
        let settlements = Decoder::default().settlements(0, durable, seen, settlements);
        let found = self.shared.sessions.get(token.as_str()).map(|entry| entry.value().clone());
        let rejections = match found {
            Some((name, session)) => self.handle(&name)?.settle(session, settlements).await?,
            None => all_not_held(settlements),
        };
        let rejections = rejections.into_iter().map(crate::session::encode::rejection).collect();
        Ok(Response::new(pb::SettleResponse { rejections }))
    }

    async fn view(&self, request: Request<pb::ViewRequest>) -> Result<Response<pb::ViewResponse>, Status> {
        let name = request.into_inner().subscription;
        self.handle(&name)?;
        Ok(Response::new(self.shared.view(&name).await?))
    }

    async fn seek(&self, request: Request<pb::SeekRequest>) -> Result<Response<pb::SeekResponse>, Status> {
        let pb::SeekRequest { subscription, offsets } = request.into_inner();
        if offsets.iter().any(|one| one.offset < 0) {
            return Err(Status::invalid_argument("offsets: one is below 0"));
        }
        let target = |one: PartitionOffset| (TopicPartition::new(one.topic, one.partition), NextOffset(one.offset));
        let targets = offsets.into_iter().map(target).collect();
        let done = self.handle(&subscription)?.seek(targets).await?;
        Ok(Response::new(pb::SeekResponse { done: done.iter().map(|partition| place(partition, 0)).collect() }))
    }

    async fn set_paused(
        &self,
        request: Request<pb::SetPausedRequest>,
    ) -> Result<Response<pb::SetPausedResponse>, Status> {
        let pb::SetPausedRequest { subscription, paused, paused_at_ms } = request.into_inner();
        let handle = self.handle(&subscription)?;
        // An earlier version does not say when.
        let pause = if paused_at_ms == 0 { handle.pause_now(paused) } else { Pause { paused, at_ms: paused_at_ms } };
        handle.set_paused(pause).await?;
        Ok(Response::new(pb::SetPausedResponse {}))
    }
}

// === impl Reader ===

impl Reader {
    async fn run(mut self) {
        let why = match self.greet().await {
            Ok(control) => self.read(control).await,
            Err(why) => why,
        };
        if self.outbox.overflowed() {
            self.shared.count_overflow();
            tracing::warn!(
                edge = self.edge,
                sessions = self.sessions.len(),
                "an edge reads no answers: its connection is given up"
            );
        }
        tracing::debug!(edge = self.edge, sessions = self.sessions.len(), why, "an edge's connection is over");
        for (_, (link, handle)) in self.sessions.drain() {
            handle.send(Ask::Close { link, end: End::EdgeGone, error: None });
        }
        self.outbox.end();
    }

    /// Whether this connection hears status.
    async fn greet(&mut self) -> Result<bool, String> {
        let first = timeout(self.shared.times.timeout, self.inbound.message()).await;
        let hello = match first {
            Ok(Ok(Some(RelayRequest { request: Some(Wire::Hello(hello)), .. }))) => hello,
            Ok(Ok(other)) => return Err(format!("its first frame is no Hello: {other:?}")),
            Ok(Err(status)) => return Err(status.to_string()),
            Err(_) => return Err("it said nothing".to_owned()),
        };
        self.edge = hello.node;
        if hello.control && hello.instance != self.shared.instance {
            self.heard = HeardFrom::new(self.shared.clone(), &hello.address);
        }
        self.outbox.say(ToEdge::Hello(self.shared.hello()));
        Ok(hello.control)
    }

    async fn read(&mut self, control: bool) -> String {
        let times = self.shared.times;
        let mut timer = interval(times.ping_interval / 2);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut status = self.shared.status.clone();
        if control {
            status.mark_changed();
        }
        let (mut heard, mut asked) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                biased;
                () = self.outbox.overflows() => return "it reads nothing".to_owned(),
                message = self.inbound.message() => match message {
                    Ok(Some(RelayRequest { session, request })) => {
                        heard = Instant::now();
                        match request {
                            Some(request) => self.on_request(session, request),
                            None => self.shared.unknown_frame(),
                        }
                    }
                    Ok(None) => return "its stream ended".to_owned(),
                    Err(status) => return status.to_string(),
                },
                () = self.outbox.closed() => return "nobody reads".to_owned(),
                Some(session) = self.ended.recv() => drop(self.sessions.remove(&session)),
                Ok(()) = status.changed(), if control => {
                    status.mark_unchanged();
                    self.outbox.tell_status();
                }
                _ = timer.tick() => {
                    let silent = heard.elapsed();
                    if silent >= times.timeout {
                        return format!("silent for {}", humantime::format_duration(times.timeout));
                    }
                    if silent >= times.ping_interval / 2 && asked.elapsed() >= times.ping_interval / 2 {
                        asked = Instant::now();
                        self.outbox.say(ToEdge::Ping(pb::Ping {}));
                    }
                }
            }
        }
    }

    fn on_request(&mut self, session: u64, request: Wire) {
        match request {
            Wire::Ping(pb::Ping {}) => self.outbox.say(ToEdge::Pong(pb::Pong {})),
            Wire::Pong(pb::Pong {}) | Wire::Hello(_) => {}
            Wire::Open(open) => self.on_open(session, open),
            Wire::Grant(grant) => {
                let window = grant.flow.and_then(|flow| window(flow).ok()).unwrap_or_default();
                self.push(session, Input::Grant { number: grant.number, window, whole: grant.whole });
            }
            Wire::Settle(s) => {
                let settlements = self.decoder.settlements(s.request_id, s.durable, s.seen, s.settlements);
                self.push(session, Input::Settle(settlements));
            }
            Wire::Drain(pb::Drain {}) => {
                if let Some((link, handle)) = self.sessions.get(&session) {
                    handle.send(Ask::Drain(link.clone()));
                }
            }
            Wire::End(end) => {
                if let Some((link, handle)) = self.sessions.remove(&session) {
                    handle.send(Ask::Close { link, end: wire::end(end.cause()), error: None });
                }
            }
        }
    }

    fn on_open(&mut self, session: u64, open: pb::Open) {
        let handle = self.shared.edges.get(&open.subscription).map(|edge| edge.handle.clone());
        let peer = format!("{} by {}", open.client, self.edge);
        let age = Duration::from_millis(open.age_ms);
        let profile = Profile {
            peer,
            labels: open.labels.clone(),
            connected_at: SystemTime::now().checked_sub(age).unwrap_or_else(SystemTime::now),
            subscribed_at: Millis(clock::now().0.saturating_sub(open.age_ms)),
            revision: sluice_proto::REVISION,
        };
        let name = open.subscription.clone();
        let opened = handle.ok_or(Error::SubscriptionNotFound(name)).and_then(|handle| {
            if self.sessions.len() >= SESSIONS_MAX {
                return Err(Error::StreamLimit(u32::try_from(SESSIONS_MAX).unwrap_or(u32::MAX)));
            }
            Ok((handle, wire::open(open, &mut self.decoder)?))
        });
        match opened {
            Ok((handle, (open, token))) => {
                let link = Link::relayed(session, self.outbox.frames.clone(), token, profile);
                self.sessions.insert(session, (link.clone(), handle.clone()));
                handle.send(Ask::Open { link, open });
            }
            Err(error) => self.outbox.frames.send(session, Frame::End(Err(error.into()))),
        }
    }

    fn push(&mut self, session: u64, input: Input) {
        let Some((link, handle)) = self.sessions.get(&session) else { return };
        link.hear();
        match link.push(input) {
            Ok(true) => handle.send(Ask::Input(link.clone())),
            Ok(false) => {}
            Err(Flood(max)) => {
                let error = Some(Error::SettleFlood(max));
                handle.send(Ask::Close { link: link.clone(), end: End::Broken, error });
                self.sessions.remove(&session);
            }
        }
    }
}
