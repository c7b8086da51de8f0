//! librdkafka's broker in this process, for `sluice dev` and tests: nothing to install, and other Kafka clients can
//! connect to its port.
//!
//! It keeps 5 MiB or 100,000 batches a partition and drops older ones in silence. It has no transactions, no admin calls
//! and no description of groups.

use std::sync::mpsc;
use std::thread::JoinHandle;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer};

use crate::ffi;
use crate::tools::ToolError;

/// The first member of a group need not wait for others: they come from one machine.
const FIRST_JOIN_DELAY_MS: i32 = 10;

/// A broker that lives as long as this value.
#[derive(Debug)]
pub struct MockBroker {
    bootstrap_servers: String,
    /// Dropped first: the thread waits for that.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MockBroker {
    /// Starts a broker with these topics and their numbers of partitions.
    ///
    /// # Errors
    /// When librdkafka cannot bind a port or make a topic.
    pub fn start(topics: &[(&str, i32)]) -> Result<Self, ToolError> {
        let topics: Vec<(String, i32)> = topics.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let (stop, stopped) = mpsc::channel::<()>();
        let (ready, started) = mpsc::channel();
        // The cluster is not Send: it lives and dies on this thread. Its broker has a thread of its own in librdkafka.
        let thread = std::thread::Builder::new()
            .name("mock-broker".to_owned())
            .spawn(move || run(&topics, &ready, &stopped))
            .map_err(|error| ToolError::new(format!("no thread for the broker in memory: {error}")))?;
        let bootstrap_servers = started
            .recv()
            .map_err(|_| ToolError::new("the broker in memory ended at its start"))
            .and_then(|started| started)?;
        Ok(Self { bootstrap_servers, stop: Some(stop), thread: Some(thread) })
    }

    /// Its address, for `bootstrap.servers`.
    #[must_use]
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }
}

impl Drop for MockBroker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _panicked = thread.join();
        }
    }
}

fn run(topics: &[(String, i32)], ready: &mpsc::Sender<Result<String, ToolError>>, stopped: &mpsc::Receiver<()>) {
    // The cluster lives in a client, and dies with it.
    let client = ClientConfig::new().set("test.mock.num.brokers", "1").create::<BaseProducer>();
    let started = client.as_ref().map_err(ToString::to_string).and_then(|client| {
        ffi::set_first_join_delay(client.client(), FIRST_JOIN_DELAY_MS);
        let cluster = client.client().mock_cluster().ok_or("it is not there")?;
        for (name, partitions) in topics {
            cluster.create_topic(name, *partitions, 1).map_err(|error| error.to_string())?;
        }
        Ok(cluster.bootstrap_servers())
    });
    let started = started.map_err(|error| ToolError::new(format!("the broker in memory does not start: {error}")));
    // Whoever started this waits for the answer; if it is gone, the next line ends the thread as well.
    let _gone = ready.send(started);
    // Ends with an error when the sender is dropped: that is the signal.
    let _dropped = stopped.recv();
}
