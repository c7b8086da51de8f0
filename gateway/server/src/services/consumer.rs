//! `sluice.v1.ConsumerService`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sluice_proto::v1::consumer_service_server::SERVICE_NAME;
use sluice_proto::v1::{ConsumeRequest, SettleRequest, SettleResponse};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Context, Poll, Service, http};
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::FRAME_BYTES_MAX;
use crate::error::Error;
use crate::next::{Spoken, spoken};
use crate::node::Shared;
use crate::session::{self, ConsumeStream, Decoder, FrameCodec, Outgoing, Permit, all_not_held, encode};

/// A proxy may route by this; where a Subscribe names no subscription it counts.
const SUBSCRIPTION_METADATA: &str = "sluice-subscription";

/// Ranges of unary settlements that may wait for their answers, all callers together: a caller has no inbox that would be
/// full, and its connection takes a thousand calls.
const UNARY_RANGES_MAX: usize = 1 << 20;

/// The service. Not generated, since records have a codec of their own.
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

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<Spoken<ConsumeStream>>, Status> {
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
        Ok(Response::new(spoken(stream)))
    }

    async fn settle(&self, request: Request<SettleRequest>) -> Result<Response<SettleResponse>, Status> {
        let request = request.into_inner();
        let ranges =
            request.settlements.iter().map(|one| one.leases.as_ref().map_or(1, |all| all.offsets.len().max(1)));
        let _permit = Permit::take_many(&self.node.unary_ranges, ranges.sum::<usize>() + 1, UNARY_RANGES_MAX)
            .ok_or_else(|| self.refuse(Error::SettleFlood(UNARY_RANGES_MAX)))?;
        let settlements = Decoder::default().settlements(0, request.durable, request.seen, request.settlements);
        if let Some(cluster) = &self.node.cluster {
            let rejections = cluster.settle(&request.session_id, settlements).await?;
            return Ok(Response::new(SettleResponse { rejections }));
        }
        let found = self.node.sessions.get(request.session_id.as_str()).map(|entry| entry.value().clone());
        let rejections = match found {
            Some((name, session)) => self.node.subscription(&name)?.settle(session, settlements).await?,
            None => all_not_held(settlements),
        };
        let rejections = rejections.into_iter().map(encode::rejection).collect();
        Ok(Response::new(SettleResponse { rejections }))
    }
}

impl NamedService for Consumer {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for Consumer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let node = self.clone();
        match request.uri().path() {
            "/sluice.v1.ConsumerService/Consume" => Box::pin(async move {
                let mut grpc = Grpc::new(FrameCodec).max_decoding_message_size(FRAME_BYTES_MAX);
                Ok(grpc.streaming(Consume(node), request).await)
            }),
            "/sluice.v1.ConsumerService/Settle" => Box::pin(async move {
                let codec = ProstCodec::<SettleResponse, SettleRequest>::default();
                let mut grpc = Grpc::new(codec).max_decoding_message_size(FRAME_BYTES_MAX);
                Ok(grpc.unary(Settle(node), request).await)
            }),
            _ => Box::pin(std::future::ready(Ok(Status::unimplemented("").into_http()))),
        }
    }
}

/// The method `Consume`.
struct Consume(Consumer);

impl StreamingService<ConsumeRequest> for Consume {
    type Response = Outgoing;
    type ResponseStream = Spoken<ConsumeStream>;
    type Future = BoxFuture<Response<Spoken<ConsumeStream>>, Status>;

    fn call(&mut self, request: Request<Streaming<ConsumeRequest>>) -> Self::Future {
        let node = self.0.clone();
        Box::pin(async move { node.consume(request).await })
    }
}

/// The method `Settle`.
struct Settle(Consumer);

impl UnaryService<SettleRequest> for Settle {
    type Response = SettleResponse;
    type Future = BoxFuture<Response<SettleResponse>, Status>;

    fn call(&mut self, request: Request<SettleRequest>) -> Self::Future {
        let node = self.0.clone();
        Box::pin(async move { node.settle(request).await })
    }
}
