//! Reaching a node: the stream, and the unary call where there is none.

use std::time::Duration;

use sluice_proto::v1::{
    ConsumeRequest, ConsumeResponse, Rejection, SettleRequest, consumer_service_client::ConsumerServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming, metadata::MetadataValue, transport::Endpoint};

use super::End;
use crate::session::Settings;

/// The largest frame that is read, unless the application says otherwise: the default of every gRPC library.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// How long a node has to answer a unary settle.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits for room. False when there never will be any again.
pub(super) async fn has_room(outbound: Option<&mpsc::Sender<ConsumeRequest>>) -> bool {
    match outbound {
        Some(outbound) => outbound.reserve().await.is_ok(),
        None => false,
    }
}

/// Opens a stream on a connection of its own, so that a load balancer may choose another node than the last.
pub(super) fn open(
    endpoint: Endpoint,
    settings: &Settings,
    first: ConsumeRequest,
    outbound: &mpsc::Sender<ConsumeRequest>,
    frames: mpsc::Receiver<ConsumeRequest>,
) -> impl Future<Output = Result<Streaming<ConsumeResponse>, End>> + 'static {
    // Room is certain: nothing was sent before.
    let sent = outbound.try_send(first).is_ok();
    debug_assert!(sent, "the first frame has room");
    let subscription = settings.subscription.clone();
    let frame_bytes_max = match settings.max_frame_bytes {
        0 => FRAME_BYTES_MAX,
        bytes => usize::try_from(bytes).unwrap_or(FRAME_BYTES_MAX),
    };
    async move {
        let channel = endpoint.connect().await.map_err(|error| End::Broken(chain(&error)))?;
        let mut client = ConsumerServiceClient::new(channel).max_decoding_message_size(frame_bytes_max);
        let mut request = Request::new(ReceiverStream::new(frames));
        // For proxies that route by it. A name that no header can carry goes without.
        if let Ok(value) = MetadataValue::try_from(subscription) {
            request.metadata_mut().insert("sluice-subscription", value);
        }
        let response = client.consume(request).await.map_err(End::Status)?;
        Ok(response.into_inner())
    }
}

/// An error with its causes: tonic's own says no more than "transport error".
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Settles without a stream. `None`: no answer to one of them; what was answered before it is lost with it, and is said again.
pub(super) async fn settle(
    endpoint: Endpoint,
    requests: Vec<(u64, SettleRequest)>,
) -> Option<Vec<(u64, Vec<Rejection>)>> {
    let channel = endpoint.connect().await.ok()?;
    let mut client = ConsumerServiceClient::new(channel);
    let mut answers = Vec::with_capacity(requests.len());
    for (number, request) in requests {
        let answer = tokio::time::timeout(SETTLE_TIMEOUT, client.settle(request)).await;
        let answer = answer.ok()?.inspect_err(|status| tracing::debug!(%status, "no answer to a unary settle")).ok()?;
        answers.push((number, answer.into_inner().rejections));
    }
    Some(answers)
}
