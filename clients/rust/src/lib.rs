//! The Rust client of Sluice: records of Kafka as leases, over one gRPC stream.
//!
//! ```no_run
//! # async fn run() -> Result<(), sluice_client::Error> {
//! let mut consumer = sluice_client::Consumer::builder("http://127.0.0.1:7070", "orders").connect().await?;
//! while let Some(record) = consumer.next().await? {
//!     println!("{} {} {:?}", record.partition(), record.offset(), record.value());
//!     record.ack();
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - Records may be settled in any order, on any task: see [`Record`].
//! - A [`Record`] that is dropped unsettled is released.
//! - Broken connections and drained nodes are the client's own business: it connects anew and takes its leases along. Only
//!   what cannot pass by itself is an [`Error`].
//! - Settlements are written in the background, and repeated on the next connection until they are answered.
//!   [`Consumer::flush`] waits for the answers, [`Consumer::close`] ends it all in good order.
//! - Where no crash may bring a record back, [`Record::ack_durable`] is awaited: then Kafka has the ack.
//! - What waits in the client's queue is kept alive by the client. What the application has is the application's business:
//!   work that takes longer than the `ack_timeout` calls [`Record::keep_extending`] once, or [`Record::extend`] now and then.
#![warn(missing_docs)]

mod backoff;
mod builder;
mod consumer;
mod driver;
mod error;
mod event;
mod lease;
mod outcome;
mod ranges;
mod record;
mod session;
mod settler;

pub use builder::Builder;
pub use consumer::{Consumer, Handle};
pub use error::{Error, Fault};
pub use event::{Event, Offsets, Ordering, RejectReason, RevokeReason, SessionInfo};
pub use outcome::{Outcome, SettleError, Settling};
pub use record::Record;
pub use settler::{NotAReceipt, Receipt, Settler};
