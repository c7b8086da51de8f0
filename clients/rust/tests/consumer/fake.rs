//! A node that does what a test tells it, frame by frame.

use std::{net::SocketAddr, time::Duration};

use sluice_client::{Builder, Consumer};
use sluice_proto::v1::{
    self, Batch, ConsumeRequest, ConsumeResponse, Delivery, Flow, Leases, OffsetRange, Record, Settled, Settlements,
    Subscribe, Subscribed,
    consume_request::Request as Frame,
    consume_response::Response as Reply,
    consumer_service_server::{ConsumerService, ConsumerServiceServer},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Far beyond what anything takes here: a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const EPOCH: i64 = 77;

/// Waits for something, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub(crate) struct FakeNode {
    address: SocketAddr,
    accepted: mpsc::Receiver<FakeStream>,
    unary: mpsc::Receiver<UnarySettle>,
}

/// A unary settle, and where its answer goes.
pub(crate) type UnarySettle = (v1::SettleRequest, oneshot::Sender<v1::SettleResponse>);

/// One stream that a client opened.
pub(crate) struct FakeStream {
    requests: Streaming<ConsumeRequest>,
    responses: mpsc::Sender<Result<ConsumeResponse, Status>>,
    sequence: u64,
}

struct Service {
    accepted: mpsc::Sender<FakeStream>,
    unary: mpsc::Sender<UnarySettle>,
}

#[tonic::async_trait]
impl ConsumerService for Service {
    type ConsumeStream = ReceiverStream<Result<ConsumeResponse, Status>>;

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let (responses, stream) = mpsc::channel(100);
        let accepted = FakeStream { requests: request.into_inner(), responses, sequence: 0 };
        self.accepted.send(accepted).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn settle(&self, request: Request<v1::SettleRequest>) -> Result<Response<v1::SettleResponse>, Status> {
        let over = || Status::unavailable("the test is over");
        let (answer, answered) = oneshot::channel();
        self.unary.send((request.into_inner(), answer)).await.map_err(|_| over())?;
        answered.await.map(Response::new).map_err(|_| over())
    }
}

impl FakeNode {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, accepted) = mpsc::channel(10);
        let (unary_sender, unary) = mpsc::channel(10);
        let service = ConsumerServiceServer::new(Service { accepted: sender, unary: unary_sender });
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, accepted, unary }
    }

    pub(crate) fn builder(&self) -> Builder {
        Consumer::builder(self.address(), "orders").consumer_id("me")
    }

    /// The next stream that the client opens.
    pub(crate) async fn accept(&mut self) -> FakeStream {
        soon("a stream", self.accepted.recv()).await.unwrap()
    }

    pub(crate) fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next unary settle.
    pub(crate) async fn unary(&mut self) -> UnarySettle {
        soon("a unary settle", self.unary.recv()).await.unwrap()
    }

    /// A consumer with its open stream.
    pub(crate) async fn connect(&mut self, builder: Builder) -> (Consumer, FakeStream) {
        let connecting = tokio::spawn(builder.connect());
        let mut stream = self.accept().await;
        stream.subscribe(vec![]).await;
        let consumer = soon("the consumer", connecting).await.unwrap().unwrap();
        (consumer, stream)
    }
}

impl FakeStream {
    pub(crate) async fn send(&self, response: Reply) {
        self.responses.send(Ok(ConsumeResponse { response: Some(response) })).await.unwrap();
    }

    /// Ends the stream with a status.
    pub(crate) async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }

    /// The next frame; None when the client half-closed.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        let message = soon("a frame", self.requests.message()).await.unwrap();
        message.map(|message| message.request.unwrap())
    }

    /// Takes the first frame, and answers that so much is kept.
    pub(crate) async fn subscribe(&mut self, held: Vec<Leases>) -> Subscribe {
        let Some(Frame::Subscribe(subscribe)) = self.frame().await else { panic!("Subscribe comes first") };
        self.sequence = subscribe.seen;
        let subscribed = Subscribed {
            session_id: "a-session".to_owned(),
            held,
            ack_timeout: Some(prost_types::Duration { seconds: 300, nanos: 0 }),
            session_timeout: Some(prost_types::Duration { seconds: 7, nanos: 0 }),
            ordering: v1::Ordering::Key.into(),
            subscription: "orders".to_owned(),
            revision: 1,
        };
        self.send(Reply::Subscribed(subscribed)).await;
        subscribe
    }

    pub(crate) async fn deliver(&mut self, offsets: impl IntoIterator<Item = i64>) {
        self.sequence += 1;
        let records = offsets.into_iter().map(|offset| Record {
            offset,
            value: Some(offset.to_string().into_bytes().into()),
            ..Default::default()
        });
        let batch = Batch { topic: "orders".to_owned(), partition: 0, epoch: EPOCH, records: records.collect() };
        self.send(Reply::Delivery(Delivery { sequence: self.sequence, batches: vec![batch] })).await;
    }

    /// The next settlements. Frames of other kinds fail the test.
    pub(crate) async fn settlements(&mut self) -> Settlements {
        match self.frame().await {
            Some(Frame::Settle(settlements)) => settlements,
            other => panic!("expected settlements, got {other:?}"),
        }
    }

    pub(crate) async fn flow(&mut self) -> Flow {
        match self.frame().await {
            Some(Frame::Flow(flow)) => flow,
            other => panic!("expected a window, got {other:?}"),
        }
    }

    pub(crate) async fn answer(&self, settlements: &Settlements) {
        self.reject(settlements, vec![]).await;
    }

    pub(crate) async fn reject(&self, settlements: &Settlements, rejections: Vec<v1::Rejection>) {
        let settled = Settled { request_id: settlements.request_id, rejections };
        self.send(Reply::Settled(settled)).await;
    }

    /// Answers settlements until so many offsets were settled, and lists them with a letter for the outcome.
    pub(crate) async fn settle_until(&mut self, offsets: usize) -> Vec<(char, i64)> {
        let mut settled = Vec::new();
        while settled.len() < offsets {
            let settlements = self.settlements().await;
            self.answer(&settlements).await;
            settled.extend(outcomes(&settlements));
        }
        settled.sort_unstable_by_key(|(_, offset)| *offset);
        settled
    }
}

/// What settlements say of each offset: `a`ck, `r`etry, `d`ead letter, re`l`ease, `e`xtend.
pub(crate) fn outcomes(settlements: &Settlements) -> Vec<(char, i64)> {
    said(&settlements.settlements)
}

pub(crate) fn said(settlements: &[v1::Settlement]) -> Vec<(char, i64)> {
    use v1::settlement::Outcome;
    let mut outcomes = Vec::new();
    for settlement in settlements {
        let letter = match settlement.outcome.as_ref().unwrap() {
            Outcome::Ack(_) => 'a',
            Outcome::Retry(_) => 'r',
            Outcome::DeadLetter(_) => 'd',
            Outcome::Release(_) => 'l',
            Outcome::Extend(_) => 'e',
        };
        for range in &settlement.leases.as_ref().unwrap().offsets {
            outcomes.extend((range.first..=range.last.unwrap_or(range.first)).map(|offset| (letter, offset)));
        }
    }
    outcomes
}

pub(crate) fn leases(ranges: &[(i64, i64)]) -> Leases {
    let offsets =
        ranges.iter().map(|(first, last)| OffsetRange { first: *first, last: (first != last).then_some(*last) });
    Leases { topic: "orders".to_owned(), partition: 0, epoch: EPOCH, offsets: offsets.collect() }
}
