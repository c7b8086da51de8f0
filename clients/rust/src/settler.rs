//! Settling from elsewhere: what another process needs, and what it does with it.

use std::{fmt, str::FromStr, time::Duration};

use sluice_proto::v1::{self, SettleRequest, consumer_service_client::ConsumerServiceClient};
use tonic::{Request, transport::Channel};

use crate::{
    builder::endpoint,
    driver::chain,
    error::{Error, Verdict, fault, verdict},
    event::RejectReason,
    lease::LeaseName,
    outcome::{Outcome, SettleError},
    session::wire,
};

/// How long a node has to answer what is not durable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Names a lease to another process, which settles it with a [`Settler`]: see [`Record::hand_over`](crate::Record::hand_over).
///
/// As text it is one line, `topic:partition:epoch:offset:frame:session`. Whoever has it may settle: treat it as a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) epoch: i64,
    pub(crate) offset: i64,
    pub(crate) frame: u64,
    pub(crate) session_id: String,
}

/// The text is not that of a [`Receipt`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a receipt: it reads topic:partition:epoch:offset:frame:session")]
pub struct NotAReceipt;

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, partition, epoch, offset, frame, session_id } = self;
        write!(f, "{topic}:{partition}:{epoch}:{offset}:{frame}:{session_id}")
    }
}

impl FromStr for Receipt {
    type Err = NotAReceipt;

    fn from_str(text: &str) -> Result<Self, NotAReceipt> {
        // Kafka allows no colon in the name of a topic.
        let mut parts = text.splitn(6, ':');
        let mut part = || parts.next().filter(|part| !part.is_empty()).ok_or(NotAReceipt);
        Ok(Self {
            topic: part()?.to_owned(),
            partition: part()?.parse().map_err(|_| NotAReceipt)?,
            epoch: part()?.parse().map_err(|_| NotAReceipt)?,
            offset: part()?.parse().map_err(|_| NotAReceipt)?,
            frame: part()?.parse().map_err(|_| NotAReceipt)?,
            session_id: part()?.to_owned(),
        })
    }
}

/// Settles leases of consumers that live elsewhere, or whose stream is gone, by the unary `Settle`. It reaches them on the
/// node where their session is.
#[derive(Debug, Clone)]
pub struct Settler {
    client: ConsumerServiceClient<Channel>,
}

impl Settler {
    /// Connects to a node at an address such as `http://127.0.0.1:7070`.
    ///
    /// # Errors
    /// [`Error::Config`] for an address that is none, [`Error::Unavailable`] when nobody answers there.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        let within = crate::builder::ATTEMPT_TIMEOUT;
        let channel = endpoint(address)?.connect().await;
        let channel = channel.map_err(|error| Error::Unavailable { within, last: chain(&error) })?;
        Ok(Self { client: ConsumerServiceClient::new(channel) })
    }

    /// Ends the lease with this outcome; the answer comes when the node has it. May be repeated: the node answers a repetition
    /// as it answered the first.
    ///
    /// # Errors
    /// As [`Record::ack_durable`](crate::Record::ack_durable).
    pub async fn settle(&self, receipt: &Receipt, outcome: Outcome) -> Result<(), SettleError> {
        let mut request = Request::new(request(receipt, outcome, false));
        request.set_timeout(ANSWER_TIMEOUT);
        self.send(request).await
    }

    /// As [`settle`](Self::settle); the answer comes when Kafka has it, however long that takes.
    ///
    /// # Errors
    /// As [`Record::ack_durable`](crate::Record::ack_durable).
    pub async fn settle_durable(&self, receipt: &Receipt, outcome: Outcome) -> Result<(), SettleError> {
        self.send(Request::new(request(receipt, outcome, true))).await
    }

    async fn send(&self, request: Request<SettleRequest>) -> Result<(), SettleError> {
        let answer = self.client.clone().settle(request).await.map_err(|status| {
            SettleError::NoAnswer(match verdict(&status) {
                Verdict::Stop(error) => error,
                Verdict::Retry(_) => Error::Failed(fault(&status)),
            })
        })?;
        let rejection = answer.into_inner().rejections.first().map(v1::Rejection::reason);
        rejection.map_or(Ok(()), |reason| Err(RejectReason::from(reason).into()))
    }
}

fn request(receipt: &Receipt, outcome: Outcome, durable: bool) -> SettleRequest {
    let Receipt { topic, partition, epoch, offset, frame, session_id } = receipt.clone();
    let range = v1::OffsetRange { first: offset, last: None };
    let leases = wire::leases(&LeaseName { topic, partition, epoch }, vec![range]);
    let settlement = wire::settlement(leases, &crate::lease::Verb::Settle(outcome.cut()));
    SettleRequest { session_id, durable, seen: frame, settlements: vec![settlement] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_survives_as_text_and_other_text_is_none() {
        let receipt = Receipt {
            topic: "orders.eu-1".to_owned(),
            partition: 3,
            epoch: i64::MAX,
            offset: 0,
            frame: 12,
            session_id: "a:b c".to_owned(),
        };
        assert_eq!(receipt.to_string().parse(), Ok(receipt));
        for text in ["", "orders", "orders:1:2:3:4", "orders:1:2:3:4:", ":1:2:3:4:s", "orders:x:2:3:4:s"] {
            assert_eq!(text.parse::<Receipt>(), Err(NotAReceipt), "{text:?}");
        }
    }
}
