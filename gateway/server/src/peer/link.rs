//! One connection from this node, as an edge, to an owner: dialed, greeted, read, and known dead when nothing comes from it.

use std::time::Duration;

use sluice_proto::peer::v1::relay_request::Request as ToOwner;
use sluice_proto::peer::v1::relay_response::Response as Wire;
use sluice_proto::peer::v1::relay_service_client::RelayServiceClient;
use sluice_proto::peer::v1::{Hello, Ping, Pong, RelayResponse};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::connect::Connector;
use super::queue::{Conn, queue};
use super::refusals::Side;
use super::wire;
use super::{FRAME_BYTES_MAX, HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_STREAM_WINDOW_BYTES, Shared};
use crate::next::spoken;
use crate::peer::edge::{FromPeer, index_of};
use crate::session::relayed::Malformed;
use crate::subscription::Pause;

/// A connection that is up.
pub(super) struct Link {
    pub(super) hello: Hello,
    pub(super) conn: Conn,
    pub(super) channel: Channel,
    inbound: Streaming<RelayResponse>,
}

/// Connects and greets, within the peers' time-out. A refusal is noted.
pub(super) async fn dial(address: &str, control: bool, shared: &Shared) -> Result<Link, String> {
    let connector = Connector::new(address, shared.tls.clone());
    let dialed = timeout(shared.times.timeout, connect(address, control, shared, connector.clone())).await;
    let dialed = dialed
        .unwrap_or_else(|_| Err(format!("no answer within {}", humantime::format_duration(shared.times.timeout))));
    // What goes wrong first says why; what comes of it does not.
    match (dialed, connector.refusal()) {
        (Ok(link), _) => {
            shared.refusals.forget(Side::Dialed, address);
            Ok(link)
        }
        (Err(_), Some(refusal)) => {
            shared.refusals.note(Side::Dialed, address, &refusal);
            Err(refusal.why)
        }
        (Err(error), None) => Err(error),
    }
}

async fn connect(address: &str, control: bool, shared: &Shared, connector: Connector) -> Result<Link, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| error.to_string())?
        .tcp_nodelay(true)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(shared.times.timeout)
        .keep_alive_timeout(shared.times.timeout);
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| chain(&error))?;
    let (conn, requests) = queue();
    conn.send(0, ToOwner::Hello(Hello { control, ..shared.hello() }));
    let mut client = client(channel.clone());
    let mut inbound = client.relay(spoken(requests)).await.map_err(|status| status.to_string())?.into_inner();
    match inbound.message().await {
        Ok(Some(RelayResponse { response: Some(Wire::Hello(hello)), .. })) => {
            Ok(Link { hello, conn, channel, inbound })
        }
        Ok(other) => Err(format!("its first frame is no Hello: {other:?}")),
        Err(status) => Err(status.to_string()),
    }
}

/// A client of the peer's service.
pub(super) fn client(channel: Channel) -> RelayServiceClient<Channel> {
    RelayServiceClient::new(channel)
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX)
}

impl Link {
    /// Reads until the connection is over. Says why it is.
    pub(super) async fn run(mut self, owner: super::OwnerId, shared: &Shared) -> String {
        let mut timer = interval(shared.times.ping_interval / 2);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut heard, mut asked) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                biased;
                () = self.conn.over.cancelled() => {
                    shared.count_overflow();
                    return "it takes nothing of what it is sent: given up".to_owned();
                }
                message = self.inbound.message() => match message {
                    Ok(Some(RelayResponse { session, response })) => {
                        heard = Instant::now();
                        match response {
                            Some(response) => {
                                if let Err(error) = self.read(owner, session, response, shared) {
                                    return error.to_string();
                                }
                            }
                            None => shared.unknown_frame(),
                        }
                    }
                    Ok(None) => return "its stream ended".to_owned(),
                    Err(status) => return status.to_string(),
                },
                _ = timer.tick() => {
                    let silent = heard.elapsed();
                    if silent >= shared.times.timeout {
                        return format!("silent for {}", humantime::format_duration(shared.times.timeout));
                    }
                    if silent >= shared.times.ping_interval / 2 && asked.elapsed() >= shared.times.ping_interval / 2 {
                        asked = Instant::now();
                        self.conn.send(0, ToOwner::Ping(Ping {}));
                    }
                }
            }
        }
    }

    fn read(&self, owner: super::OwnerId, session: u64, response: Wire, shared: &Shared) -> Result<(), Malformed> {
        match response {
            Wire::Ping(Ping {}) => self.conn.send(0, ToOwner::Pong(Pong {})),
            Wire::Pong(Pong {}) | Wire::Hello(_) => {}
            Wire::Status(status) => {
                shared.note_policies(owner, &status);
                for edge in shared.edges.values() {
                    let name = &*edge.handle.name;
                    let of = status.subscriptions.iter().find(|one| one.subscription == name).cloned();
                    if let Some(of) = &of {
                        edge.handle.hear_pause(Pause { paused: of.paused, at_ms: of.paused_at_ms });
                    }
                    let (status, draining) = (of.unwrap_or_default(), status.draining);
                    let _ = edge.peers.send(FromPeer::Status { owner, status, draining });
                }
            }
            about => {
                let index = usize::try_from(index_of(session)).unwrap_or(usize::MAX);
                if let (Some(edge), Some(said)) = (shared.edges.values().nth(index), wire::from_response(about)?) {
                    let _ = edge.peers.send(FromPeer::Session { session, said });
                }
            }
        }
        Ok(())
    }
}

/// An error with its causes: tonic's own says only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The pause before the next try: doubled up to `longest`, with full jitter.
pub(super) fn backoff(tries: u32, longest: Duration) -> Duration {
    let whole = Duration::from_millis(100).saturating_mul(1 << tries.min(10)).min(longest);
    let share = f64::from(u16::try_from(crate::random::number() & 0xffff).unwrap_or_default()) / f64::from(u16::MAX);
    whole.mul_f64(share).max(Duration::from_millis(20))
}
