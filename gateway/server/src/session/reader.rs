//! The task that reads one stream, and keeps its clocks: silence, age, grace.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use sluice_core::{End, Open};
use sluice_proto::v1::{self, consume_request::Request as Wire};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Code, Status, Streaming};

use super::decode::{self, Decoder};
use super::inbox::{Flood, Input};
use super::link::{Frame, Link, Profile, Transport};
use super::silence::{Limits, Verdict};
use crate::error::Error;
use crate::node::Shared;
use crate::services::FRAME_BYTES_MAX;
use crate::subscription::{Handle, Request, clock};

/// A transport that is alive passes a probe at once; one that is blocked by a client that stopped reading does not.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);

/// A node's times for all streams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) ping_interval: Duration,
    pub(crate) max_age: Duration,
    pub(crate) grace: Duration,
}

/// A stream that subscribed.
struct Reader {
    inbound: Streaming<v1::ConsumeRequest>,
    link: Arc<Link>,
    frames: mpsc::UnboundedSender<Frame>,
    handle: Arc<Handle>,
    decoder: Decoder,
    limits: Limits,
    timing: Timing,
    resumable: bool,
    ping_queued: u64,
    /// When it is told to drain, and then when its grace ends.
    age_at: Instant,
    /// It has reached its age.
    aged: bool,
}

/// How reading ended.
enum Ended {
    /// The driver ended the stream.
    Over,
    /// This is how.
    With(End, Option<Error>),
}

/// Reads a stream from its first frame to its end.
pub(crate) async fn consume(
    mut inbound: Streaming<v1::ConsumeRequest>,
    named: Option<String>,
    peer: String,
    node: Arc<Shared>,
    frames: mpsc::UnboundedSender<Frame>,
    transport: Arc<Transport>,
) {
    let subscribed = match first_frame(&mut inbound, &frames).await {
        Ok(Some(subscribe)) => subscribe_to(&node, subscribe, named),
        Ok(None) => return,
        Err(error) => Err(error),
    };
    let (handle, open, (labels, revision), decoder) = match subscribed {
        Ok(subscribed) => subscribed,
        Err(error) => {
            node.refused(&error);
            let _ = frames.send(Frame::End(Err(error.into())));
            return;
        }
    };
    let (connected_at, subscribed_at) = (SystemTime::now(), clock::now());
    let profile = Profile { peer, labels, connected_at, subscribed_at, revision };
    let link = Link::new(frames.clone(), transport, open.window.unwrap_or_default(), profile);
    let resumable = open.consumer_id.is_some();
    link.transport.hear();
    handle.accept(Request::Open { link: link.clone(), open });
    let timing = node.timing;
    let limits = Limits::new(millis(timing.ping_interval), millis(handle.session_timeout));
    let age_at = Instant::now() + jittered(timing.max_age);
    let mut reader = Reader {
        inbound,
        link,
        frames,
        handle,
        decoder,
        limits,
        timing,
        resumable,
        ping_queued: 0,
        age_at,
        aged: false,
    };
    if let Ended::With(end, error) = reader.run().await {
        if let Some(error) = &error {
            node.refused(error);
        }
        let Reader { link, handle, .. } = reader;
        handle.accept(Request::Close { link, end, error });
    }
}

/// `Ok(None)`: the client left before it said anything.
async fn first_frame(
    inbound: &mut Streaming<v1::ConsumeRequest>,
    frames: &mpsc::UnboundedSender<Frame>,
) -> Result<Option<v1::Subscribe>, Error> {
    const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(30);
    let frame = tokio::select! {
        biased;
        frame = timeout(FIRST_FRAME_TIMEOUT, inbound.message()) => frame,
        () = frames.closed() => return Ok(None),
    };
    match frame {
        Err(_) => Err(Error::SessionTimeout(FIRST_FRAME_TIMEOUT)),
        Ok(Err(status)) => fault_of_frame(&status).map_or(Ok(None), Err),
        Ok(Ok(Some(v1::ConsumeRequest { request: Some(Wire::Subscribe(subscribe)) }))) => Ok(Some(subscribe)),
        Ok(Ok(Some(v1::ConsumeRequest { request: None }))) => Err(Error::UnknownFrame),
        Ok(Ok(_)) => Err(Error::BadFirstFrame),
    }
}

/// What a client says of itself: labels, revision.
type About = (std::collections::HashMap<String, String>, u32);
type Subscribed = (Arc<Handle>, Open, About, Decoder);

fn subscribe_to(node: &Shared, mut subscribe: v1::Subscribe, named: Option<String>) -> Result<Subscribed, Error> {
    let handle = match subscribe.target.take() {
        Some(v1::subscribe::Target::Subscription(name)) => node.subscription(&name)?,
        Some(v1::subscribe::Target::Spec(spec)) => node.subscription_of_spec(&spec)?,
        None => match named {
            Some(name) => node.subscription(&name)?,
            None => return Err(Error::Invalid { field: "subscribe.target", problem: "is not set".to_owned() }),
        },
    };
    // A client that names no revision speaks the first; of a later one than ours it sends nothing, since it hears ours.
    let about = (subscribe.labels.clone(), subscribe.revision.clamp(1, sluice_proto::REVISION));
    let mut decoder = Decoder::default();
    let open = decoder.open(subscribe)?;
    Ok((handle, open, about, decoder))
}

/// What a frame had that ended the stream; `None`: the connection did. What tonic says of a frame that it cannot decode
/// stands alone, what it says of the connection has the connection's error as its source.
fn fault_of_frame(status: &Status) -> Option<Error> {
    use std::error::Error as _;
    match status.code() {
        Code::OutOfRange => Some(Error::FrameTooLarge(FRAME_BYTES_MAX)),
        Code::Internal if status.source().is_none() => Some(Error::UnreadableFrame(status.message().to_owned())),
        _ => None,
    }
}

// === impl Reader ===

impl Reader {
    async fn run(&mut self) -> Ended {
        let link = self.link.clone();
        let frames = self.frames.clone();
        let mut over = pin!(link.over.cancelled());
        let mut gone = pin!(frames.closed());
        let mut timer = pin!(sleep_until(Instant::now()));
        loop {
            tokio::select! {
                biased;
                () = &mut over => return Ended::Over,
                message = self.inbound.message() => match message {
                    Ok(Some(message)) => {
                        self.link.transport.hear();
                        if let Err(error) = self.read(message) {
                            return Ended::With(End::Broken, Some(error));
                        }
                    }
                    Ok(None) => return Ended::With(self.half_close_or_break().await, None),
                    Err(status) => return Ended::With(End::Broken, fault_of_frame(&status)),
                },
                () = &mut gone => return Ended::With(End::Broken, None),
                () = &mut timer => match self.on_timer() {
                    Ok(at) => timer.as_mut().reset(at),
                    Err(ended) => return ended,
                },
            }
        }
    }

    /// One frame. An error ends the stream.
    fn read(&mut self, message: v1::ConsumeRequest) -> Result<(), Error> {
        let input = match message.request {
            None => return Err(Error::UnknownFrame),
            Some(Wire::Subscribe(_)) => return Err(Error::SecondSubscribe),
            Some(Wire::Pong(_)) => return Ok(()),
            Some(Wire::Flow(flow)) => Input::Window(decode::window(flow)?),
            Some(Wire::Settle(s)) => {
                Input::Settle(self.decoder.settlements(s.request_id, s.durable, s.seen, s.settlements))
            }
        };
        let wake = self.link.push(input).map_err(|Flood(ranges_max)| Error::SettleFlood(ranges_max))?;
        if wake {
            self.handle.accept(Request::Input(self.link.clone()));
        }
        Ok(())
    }

    /// The client's side ended, which a reset looks like from here: hyper reads RST_STREAM(CANCEL) as an end. A reset
    /// also drops the response stream before it takes another frame; so whether a probe passes tells the two apart. A
    /// transport that is blocked passes nothing; it would have been dropped, had there been a reset.
    async fn half_close_or_break(&self) -> End {
        if self.frames.send(Frame::Probe).is_err() {
            return End::Broken;
        }
        tokio::select! {
            () = self.link.transport.probed.notified() => End::HalfClose,
            () = self.frames.closed() => End::Broken,
            () = tokio::time::sleep(PROBE_TIMEOUT) => End::HalfClose,
        }
    }

    /// Pings, breaks, drains: whatever is due. Says when to look again.
    fn on_timer(&mut self) -> Result<Instant, Ended> {
        let now = Instant::now();
        if self.age_at <= now {
            if self.aged {
                // With a consumer_id the client may be on its way back: its leases wait for it as after a break.
                let end = if self.resumable { End::Broken } else { End::Drained };
                return Err(Ended::With(end, None));
            }
            self.aged = true;
            self.age_at = now + self.timing.grace;
            // One that drains with its node has that grace, and its end is not ours.
            if !self.link.drained.load(Ordering::Acquire) {
                self.handle.accept(Request::Drain(self.link.clone()));
            }
        }
        let transport = &self.link.transport;
        let elapsed = transport.now();
        let wait_until = match self.limits.verdict(transport.life(self.ping_queued), elapsed) {
            Verdict::Wait(until) => until,
            Verdict::Ping => {
                self.ping_queued = elapsed;
                let _ = self.frames.send(Frame::Ping);
                elapsed + self.limits.ping_interval_ms
            }
            Verdict::Broken => {
                let error = Error::SessionTimeout(Duration::from_millis(self.limits.session_timeout_ms));
                return Err(Ended::With(End::Broken, Some(error)));
            }
        };
        let wait = Duration::from_millis(wait_until.saturating_sub(elapsed).max(1));
        Ok((now + wait).min(self.age_at))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// ± 10 %, so that streams which began together do not end together.
fn jittered(age: Duration) -> Duration {
    let random = f64::from(u16::try_from(crate::random::number() & 0xffff).unwrap_or_default()) / f64::from(u16::MAX);
    age.mul_f64(0.9 + 0.2 * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streams_age_is_half_an_hour_by_default_give_or_take_a_tenth() {
        let age = crate::config::NodeConfig::default().stream_max_age;
        assert_eq!(age, Duration::from_secs(1_800));
        let ages: Vec<Duration> = (0..1_000).map(|_| jittered(age)).collect();
        let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!(*least >= Duration::from_secs(1_620) && *most <= Duration::from_secs(1_980), "{least:?} to {most:?}");
        assert!(*most - *least > Duration::from_secs(180), "they do not end together: {least:?} to {most:?}");
    }
}
