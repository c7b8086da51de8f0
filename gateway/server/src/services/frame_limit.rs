//! tonic refuses a request that is too large, or that it cannot read, before any service sees it, and says so in its own
//! way. The contract says FRAME_TOO_LARGE and UNREADABLE_FRAME, in streams (see `session::reader`) and in unary calls.

use std::sync::Arc;

use tonic::body::Body;
use tonic::codegen::{BoxFuture, Context, Poll, Service, http};
use tonic::server::NamedService;
use tonic::{Code, Status};

use super::FRAME_BYTES_MAX;
use crate::error::Error;
use crate::node::Shared;

/// A service whose requests are limited.
#[derive(Debug, Clone)]
pub(crate) struct FrameLimit<S> {
    inner: S,
    node: Arc<Shared>,
}

impl<S> FrameLimit<S> {
    pub(crate) fn new(inner: S, node: Arc<Shared>) -> Self {
        Self { inner, node }
    }
}

impl<S: NamedService> NamedService for FrameLimit<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for FrameLimit<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let node = self.node.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            // A response that ends with its headers has the status among them. Nothing of ours answers with these codes.
            let Some(status) = Status::from_header_map(response.headers()) else { return Ok(response) };
            let error = match status.code() {
                Code::OutOfRange => Error::FrameTooLarge(FRAME_BYTES_MAX),
                Code::Internal => Error::UnreadableFrame(status.message().to_owned()),
                _ => return Ok(response),
            };
            node.refused(&error);
            Ok(Status::from(error).into_http())
        })
    }
}
