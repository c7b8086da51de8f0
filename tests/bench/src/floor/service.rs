//! As much of `sluice.v1` as a floor needs: a window, frames under it, acks. No leases, no retries, no redelivery.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use sluice_proto::v1::consume_request::Request as Asked;
use sluice_proto::v1::consume_response::Response as Told;
use sluice_proto::v1::consumer_service_server::{ConsumerService, ConsumerServiceServer};
use sluice_proto::v1::{
    Batch, ConsumeRequest, ConsumeResponse, Delivery, Leases, SettleRequest, SettleResponse, Settled, Subscribe,
    Subscribed,
};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::competing::Parcel;
use super::say;

/// The gateway's own receive windows: settlements are small.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Any number: nothing here is fenced.
const EPOCH: i64 = 7;

/// Where a stream's records come from, and where its acks go. One a stream.
pub trait Dealer: Send + Unpin + 'static {
    /// Records for one frame, at most `room`.
    fn poll_deal(&mut self, context: &mut Context<'_>, room: usize) -> Poll<Parcel>;
    /// No room for another frame now.
    fn rest(&mut self) {}
    /// All of a frame is acked.
    fn done(&mut self, partition: i32, first: i64, last: i64);
}

/// A server of streams.
pub struct Floor<D, F> {
    topic: String,
    frame_records: usize,
    dealer: F,
    kind: std::marker::PhantomData<fn() -> D>,
}

/// One stream.
pub struct Out<D: Dealer> {
    inbound: Streaming<ConsumeRequest>,
    dealer: D,
    topic: String,
    frame_records: usize,
    window: usize,
    open: usize,
    held: VecDeque<Held>,
    sequence: u64,
    answers: VecDeque<Told>,
}

/// A frame that is not acked.
struct Held {
    partition: i32,
    first: i64,
    last: i64,
    open: usize,
}

impl<D: Dealer, F: Fn() -> D + Send + Sync + 'static> Floor<D, F> {
    pub fn new(topic: &str, frame_records: usize, dealer: F) -> Self {
        Self { topic: topic.to_owned(), frame_records, dealer, kind: std::marker::PhantomData }
    }

    /// Listens on a port of its own, says where, and serves until it is killed.
    pub async fn serve(self) -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        say(&serde_json::json!({ "event": "ready", "address": listener.local_addr()?.to_string() }));
        let incoming = tokio_stream::StreamExt::map(TcpListenerStream::new(listener), |connection| {
            connection.inspect(|connection| {
                let _ = connection.set_nodelay(true);
            })
        });
        Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(4 * STREAM_WINDOW_BYTES)
            .add_service(ConsumerServiceServer::new(self))
            .serve_with_incoming(incoming)
            .await?;
        Ok(())
    }
}

#[tonic::async_trait]
impl<D: Dealer, F: Fn() -> D + Send + Sync + 'static> ConsumerService for Floor<D, F> {
    type ConsumeStream = Out<D>;

    async fn consume(&self, request: Request<Streaming<ConsumeRequest>>) -> Result<Response<Out<D>>, Status> {
        Ok(Response::new(Out {
            inbound: request.into_inner(),
            dealer: (self.dealer)(),
            topic: self.topic.clone(),
            frame_records: self.frame_records,
            window: 0,
            open: 0,
            held: VecDeque::new(),
            sequence: 0,
            answers: VecDeque::new(),
        }))
    }

    async fn settle(&self, _request: Request<SettleRequest>) -> Result<Response<SettleResponse>, Status> {
        Err(Status::unimplemented("a floor settles on its streams only"))
    }
}

impl<D: Dealer> Stream for Out<D> {
    type Item = Result<ConsumeResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match Pin::new(&mut this.inbound).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(None | Some(Err(_))) => return Poll::Ready(None),
                Poll::Ready(Some(Ok(frame))) => this.take(frame),
            }
        }
        if let Some(answer) = this.answers.pop_front() {
            return Poll::Ready(Some(Ok(ConsumeResponse { response: Some(answer) })));
        }
        // Whole frames only: small ones would be cheaper to wait for than to send.
        let room = this.window.saturating_sub(this.open);
        if room < this.frame_records.min(this.window).max(1) {
            this.dealer.rest();
            return Poll::Pending;
        }
        this.dealer.poll_deal(context, room).map(|parcel| Some(Ok(this.deliver(parcel))))
    }
}

impl<D: Dealer> Out<D> {
    fn take(&mut self, frame: ConsumeRequest) {
        match frame.request {
            Some(Asked::Subscribe(subscribe)) => self.subscribed(subscribe),
            Some(Asked::Flow(flow)) => self.window = usize::try_from(flow.max_records).unwrap_or(0),
            Some(Asked::Settle(settlements)) => {
                for leases in settlements.settlements.into_iter().filter_map(|settlement| settlement.leases) {
                    self.ack(&leases);
                }
                if settlements.request_id != 0 {
                    let settled = Settled { request_id: settlements.request_id, rejections: Vec::new() };
                    self.answers.push_back(Told::Settled(settled));
                }
            }
            Some(Asked::Pong(_)) | None => {}
        }
    }

    fn subscribed(&mut self, subscribe: Subscribe) {
        self.window = subscribe.flow.map_or(0, |flow| usize::try_from(flow.max_records).unwrap_or(0));
        self.answers.push_back(Told::Subscribed(Subscribed {
            session_id: "floor".to_owned(),
            revision: sluice_proto::REVISION,
            ..Subscribed::default()
        }));
    }

    /// Each record of a range that stands in a frame of ours. Clients ack a record once; a floor believes them.
    fn ack(&mut self, leases: &Leases) {
        for range in &leases.offsets {
            let (first, last) = (range.first, range.last.unwrap_or(range.first));
            for held in self.held.iter_mut().filter(|held| held.partition == leases.partition) {
                let overlap = last.min(held.last) - first.max(held.first) + 1;
                let acked = usize::try_from(overlap).unwrap_or(0).min(held.open);
                held.open -= acked;
                self.open -= acked;
                if acked > 0 && held.open == 0 {
                    self.dealer.done(held.partition, held.first, held.last);
                }
            }
        }
        while self.held.front().is_some_and(|held| held.open == 0) {
            self.held.pop_front();
        }
    }

    fn deliver(&mut self, parcel: Parcel) -> ConsumeResponse {
        let Parcel { partition, records } = parcel;
        let of = |record: Option<&sluice_proto::v1::Record>| record.map_or(0, |record| record.offset);
        let (first, last) = (of(records.first()), of(records.last()));
        self.open += records.len();
        self.held.push_back(Held { partition, first, last, open: records.len() });
        self.sequence += 1;
        let batch = Batch { topic: self.topic.clone(), partition, epoch: EPOCH, records };
        ConsumeResponse { response: Some(Told::Delivery(Delivery { sequence: self.sequence, batches: vec![batch] })) }
    }
}
