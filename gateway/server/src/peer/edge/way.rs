//! The way to an owner's engine: on this node, or over a connection. What is said is the same.

use std::sync::Arc;

use sluice_core::{End, Open, Settlements, Via};
use sluice_proto::peer::v1 as pb;
use sluice_proto::peer::v1::relay_request::Request as Wire;
use sluice_proto::v1;

use super::grants::Grant;
use crate::peer::queue::{Conn, Full, Share};
use crate::peer::wire;
use crate::session::encode::{self, duration};
use crate::session::{Flood, Input, Link, Profile};
use crate::subscription::{Handle, Request, clock};

/// A session at an owner.
#[derive(Debug)]
pub(crate) enum Way {
    Near { handle: Arc<Handle>, link: Arc<Link> },
    Far { conn: Conn, share: Share },
}

impl Way {
    /// Opens the session.
    pub(crate) fn open(&self, session: u64, open: &Open, token: &str, profile: &Profile, subscription: &str) {
        match self {
            Self::Near { handle, link } => {
                let seen = u64::from(open.seen > 0);
                let open = Open { window: None, via: Via::NearEdge, seen, ..open.clone() };
                handle.send(Request::Open { link: link.clone(), open });
            }
            Self::Far { conn, .. } => {
                let millis = |ms| duration(std::time::Duration::from_millis(ms));
                let open = pb::Open {
                    subscription: subscription.to_owned(),
                    consumer_id: open.consumer_id.clone().unwrap_or_default(),
                    token: token.to_owned(),
                    ack_timeout: open.ack_timeout_ms.map(millis),
                    max_frame_bytes: open.max_frame_bytes,
                    report_commits: open.report_commits,
                    holding: open.holding.iter().cloned().map(encode::leases).collect(),
                    returns: open.seen > 0,
                    client: profile.peer.clone(),
                    labels: profile.labels.clone(),
                    age_ms: clock::now().0.saturating_sub(profile.subscribed_at.0),
                };
                conn.send(session, Wire::Open(open));
            }
        }
    }

    pub(crate) fn grant(&self, session: u64, grant: &Grant) {
        let Grant { number, window, whole, .. } = *grant;
        match self {
            // There is always room for one.
            Self::Near { .. } => drop(self.push(Input::Grant { number, window, whole })),
            Self::Far { conn, .. } => {
                let flow = v1::Flow {
                    max_records: i32::try_from(window.max_records).unwrap_or(i32::MAX),
                    max_bytes: i64::try_from(window.max_bytes).unwrap_or(i64::MAX),
                };
                conn.send(session, Wire::Grant(pb::Grant { number, flow: Some(flow), whole }));
            }
        }
    }

    pub(crate) fn settle(&self, session: u64, settlements: Settlements) -> Result<(), Full> {
        match self {
            Self::Near { .. } => self.push(Input::Settle(settlements)).map_err(|Flood(max)| Full(max)),
            Self::Far { conn, share } => {
                let ranges =
                    settlements.settlements.iter().map(|s| s.leases.offsets.len().max(1)).sum::<usize>().max(1);
                conn.settle(session, Wire::Settle(wire::settlements(settlements)), ranges, share)
            }
        }
    }

    pub(crate) fn drain(&self, session: u64) {
        match self {
            Self::Near { handle, link } => handle.send(Request::Drain(link.clone())),
            Self::Far { conn, .. } => conn.send(session, Wire::Drain(pb::Drain {})),
        }
    }

    pub(crate) fn end(&self, session: u64, end: End) {
        match self {
            Self::Near { handle, link } => handle.send(Request::Close { link: link.clone(), end, error: None }),
            Self::Far { conn, .. } => conn.send(session, Wire::End(pb::End { cause: wire::cause(end).into() })),
        }
    }

    fn push(&self, input: Input) -> Result<(), Flood> {
        let Self::Near { handle, link } = self else { return Ok(()) };
        link.hear();
        if link.push(input)? {
            handle.send(Request::Input(link.clone()));
        }
        Ok(())
    }
}
