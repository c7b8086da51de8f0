//! Records as they stand in a log, with all that they have.

use rdkafka::Timestamp;
use rdkafka::message::{Headers as _, Message as _};

use crate::kafka::client::Kafka;

/// One record of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its place.
    pub offset: i64,
    /// When it was made, or appended, as its topic has it.
    pub timestamp: Timestamp,
    /// `None`: null.
    pub key: Option<Vec<u8>>,
    /// `None`: null.
    pub value: Option<Vec<u8>>,
    /// Names and values, in their order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Stored {
    /// The text of the last header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rfind(|(known, _)| known == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}

impl Kafka {
    /// What a partition holds now, as a read_committed consumer sees it.
    #[must_use]
    pub fn stored(&self, topic: &str, partition: i32) -> Vec<Stored> {
        let mut stored = Vec::new();
        self.scan(topic, partition, "read_committed", |record| {
            let headers = record
                .headers()
                .map(|headers| headers.iter().map(|one| (one.key.to_owned(), one.value.map(<[u8]>::to_vec))).collect());
            stored.push(Stored {
                offset: record.offset(),
                timestamp: record.timestamp(),
                key: record.key().map(<[u8]>::to_vec),
                value: record.payload().map(<[u8]>::to_vec),
                headers: headers.unwrap_or_default(),
            });
        });
        stored
    }
}
