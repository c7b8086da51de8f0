//! The handle of one subscription's threads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::describe::Describer;
use crate::fetch::Fetch;
use crate::ffi::{Handle, Purpose};
use crate::io::{FetchGate, KafkaCommand, KafkaConfig, KafkaEvent};
use crate::lookup::Lookup;
use crate::member::Member;
use crate::messages::{Epochs, FetchCommand, LookupCommand, Silence};
use crate::signal::Mailbox;

/// Records on their way to the driver, in bytes. Beyond it stands only librdkafka's own prefetch queue.
const QUEUED_BYTES_MAX: usize = 1 << 20;
/// A dropped subscription leaves its group within this.
const DROP_WITHIN: Duration = Duration::from_secs(5);

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// librdkafka did not accept the configuration.
    #[error("kafka: {0}")]
    Config(String),
    /// A thread could not be started.
    #[error("kafka: starting a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// A broker refused, or did not answer in time.
    #[error("kafka: {0}")]
    Broker(String),
}

/// One subscription's threads. Dropping it shuts them down without waiting.
#[derive(Debug)]
pub struct Subscription {
    gate: Arc<FetchGate>,
    member: Arc<Mailbox<KafkaCommand>>,
    fetch: Arc<Mailbox<FetchCommand>>,
    lookup: Arc<Mailbox<LookupCommand>>,
}

impl Subscription {
    /// Checks the configuration by creating both handles, starts the threads; joins nothing yet. Without a describer nobody asks
    /// who is in the group.
    ///
    /// # Errors
    /// When librdkafka refuses a property.
    pub fn start(
        config: KafkaConfig,
        describer: Option<Describer>,
    ) -> Result<(Self, UnboundedReceiver<KafkaEvent>), Error> {
        config.check()?;
        let config = Arc::new(config);
        let fetch_handle = Arc::new(Handle::new(Purpose::Fetch, &config.properties_for(Purpose::Fetch))?);
        let member_handle = Handle::new(Purpose::Member, &config.properties_for(Purpose::Member))?;
        // Made only to be checked: a subscription that nobody uses is no member.
        spawn("kafka-drop", move || drop(member_handle))?;

        let (events, receiver) = unbounded_channel();
        let (member, fetch, lookup) = (Mailbox::new(), Mailbox::new(), Mailbox::new());
        let gate = FetchGate::new(QUEUED_BYTES_MAX);
        gate.wakes(fetch.signal());

        let (epochs, silence) = (Arc::new(Epochs::default()), Arc::new(Silence::default()));
        let work = Fetch::new(&fetch_handle, &gate, &fetch, &lookup, &epochs, events.clone())?;
        spawn_watched("kafka-fetch", &events, move || work.run())?;
        let work = Lookup::new(&config, fetch_handle, &lookup, &fetch, &silence, events.clone(), describer);
        spawn_watched("kafka-lookup", &events, move || work.run())?;
        let work = Member::new(&config, &member, &fetch, &lookup, &epochs, &silence, events.clone());
        spawn_watched("kafka-member", &events, move || work.run())?;
        Ok((Self { gate, member, fetch, lookup }, receiver))
    }

    /// Sends a command; never blocks.
    pub fn send(&self, command: KafkaCommand) {
        match command {
            KafkaCommand::Hold(partition, epoch) => self.fetch.send(FetchCommand::Hold(partition, epoch)),
            KafkaCommand::Unhold(partition, epoch, next) => {
                self.fetch.send(FetchCommand::Unhold(partition, epoch, next));
            }
            KafkaCommand::Seek(command) => self.lookup.send(LookupCommand::Seek(command)),
            command => self.member.send(command),
        }
    }

    /// The gate between the fetch thread and the driver.
    #[must_use]
    pub fn gate(&self) -> &Arc<FetchGate> {
        &self.gate
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.member.send(KafkaCommand::Shutdown(DROP_WITHIN));
    }
}

/// Tells the driver when its thread panics: two threads without the third would look well and do nothing.
struct Watch {
    name: &'static str,
    events: UnboundedSender<KafkaEvent>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _receiver_gone = self.events.send(KafkaEvent::Panicked(self.name));
        }
    }
}

fn spawn_watched(
    name: &'static str,
    events: &UnboundedSender<KafkaEvent>,
    work: impl FnOnce() + Send + 'static,
) -> Result<(), Error> {
    let watch = Watch { name, events: events.clone() };
    spawn(name, move || {
        let _watch = watch;
        work();
    })
}

/// A named thread.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop).map_err(Error::Thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_is_told_and_one_that_ends_is_not() {
        let (events, mut receiver) = unbounded_channel();
        spawn_watched("well", &events, || ()).expect("a thread");
        spawn_watched("ill", &events, || panic!("a bug")).expect("a thread");
        drop(events);
        let told: Vec<_> = std::iter::from_fn(|| receiver.blocking_recv()).collect();
        assert!(matches!(told[..], [KafkaEvent::Panicked("ill")]), "{told:?}");
    }
}
