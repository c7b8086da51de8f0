//! `sluice.v1.ConsumerService`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sluice_proto::v1::consumer_service_server::ConsumerService;
use sluice_proto::v1::{ConsumeRequest, SettleRequest, SettleResponse};
use tonic::{Request, Response, Status, Streaming};

use crate::error::Error;
use crate::node::Shared;
use crate::session::{self, ConsumeStream, Decoder, Permit, all_not_held, encode};

/// A proxy may route by this; where a Subscribe names no subscription it counts.
const SUBSCRIPTION_METADATA: &str = "sluice-subscription";

/// Ranges of unary settlements that may wait for their answers, all callers together: a caller has no inbox that would be
/// full, and its connection takes a thousand calls.
const UNARY_RANGES_MAX: usize = 1 << 20;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Consumer {
    node: Arc<Shared>,
}

impl Consumer {
    pub(crate) fn new(node: Arc<Shared>) -> Self {
        Self { node }
    }

    fn refuse(&self, error: Error) -> Status {
        self.node.refused(&error);
        error.into()
    }
}

#[tonic::async_trait]
impl ConsumerService for Consumer {
    type ConsumeStream = ConsumeStream;

    async fn consume(&self, request: Request<Streaming<ConsumeRequest>>) -> Result<Response<ConsumeStream>, Status> {
        if self.node.draining.load(Ordering::Acquire) {
            return Err(self.refuse(Error::ShuttingDown));
        }
        let max = self.node.config.limits.max_streams;
        let permit = Permit::take(&self.node.streams, usize::try_from(max).unwrap_or(usize::MAX))
            .ok_or_else(|| self.refuse(Error::StreamLimit(max)))?;
        let peer = request.remote_addr().map_or_else(|| "unknown".to_owned(), |addr| addr.to_string());
        let named =
            request.metadata().get(SUBSCRIPTION_METADATA).and_then(|name| name.to_str().ok()).map(str::to_owned);
        // The response begins at once: a client may wait for its headers before it sends the first frame.
        let (frames, transport, stream) = session::channel(permit);
        let reading = session::consume(request.into_inner(), named, peer, self.node.clone(), frames, transport);
        tokio::spawn(reading);
        Ok(Response::new(stream))
    }

    async fn settle(&self, request: Request<SettleRequest>) -> Result<Response<SettleResponse>, Status> {
        let request = request.into_inner();
        let ranges =
            request.settlements.iter().map(|one| one.leases.as_ref().map_or(1, |all| all.offsets.len().max(1)));
        let _permit = Permit::take_many(&self.node.unary_ranges, ranges.sum::<usize>() + 1, UNARY_RANGES_MAX)
            .ok_or_else(|| self.refuse(Error::SettleFlood(UNARY_RANGES_MAX)))?;
        let settlements = Decoder::default().settlements(0, request.durable, request.seen, request.settlements);
        let found = self.node.sessions.get(request.session_id.as_str()).map(|entry| entry.value().clone());
        let rejections = match found {
            Some((name, session)) => self.node.subscription(&name)?.settle(session, settlements).await?,
            None => all_not_held(settlements),
        };
        let rejections = rejections.into_iter().map(encode::rejection).collect();
        Ok(Response::new(SettleResponse { rejections }))
    }
}
