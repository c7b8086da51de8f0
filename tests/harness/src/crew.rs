//! Sessions that ack all they are dealt, on tasks of their own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::gateway::Gateway;
use crate::history::History;
use crate::wire::{Lease, Seen, Wire, dead_letter, retry_after, subscribe};

/// What a session does with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Acks it.
    Ack,
    /// Fails it; it comes again after so long.
    Retry(Duration),
    /// Gives it up.
    DeadLetter,
    /// Settles nothing: its lease expires.
    Forget,
    /// Dies with all that it holds.
    Die,
}

type Habit = Arc<dyn Fn(&Lease) -> Act + Send + Sync>;

/// What the sessions of a crew do.
#[derive(Clone)]
pub struct Crew {
    addresses: Vec<String>,
    subscription: String,
    window: i32,
    work: Duration,
    at_once: bool,
    history: History,
    habit: Habit,
}

/// A crew at work. Dropping it drops the sessions.
#[derive(Debug)]
pub struct AtWork {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Sessions of a subscription that write down what they do.
    #[must_use]
    pub fn new(gateway: &Gateway, subscription: &str, history: &History) -> Self {
        Self::by(gateway.address(), subscription, history)
    }

    /// Sessions that are led to some gateway by a balancer at this address.
    #[must_use]
    pub fn by(address: &str, subscription: &str, history: &History) -> Self {
        Self {
            addresses: vec![address.to_owned()],
            subscription: subscription.to_owned(),
            window: 100,
            work: Duration::ZERO,
            at_once: false,
            history: history.clone(),
            habit: Arc::new(|_| Act::Ack),
        }
    }

    /// Another gateway to go to when a stream ends.
    #[must_use]
    pub fn or(mut self, gateway: &Gateway) -> Self {
        self.addresses.push(gateway.address().to_owned());
        self
    }

    /// With another window than 100.
    #[must_use]
    pub fn window(mut self, window: i32) -> Self {
        self.window = window;
        self
    }

    /// With this long between a frame and its acks.
    #[must_use]
    pub fn work(mut self, work: Duration) -> Self {
        self.work = work;
        self
    }

    /// With this long for each record, and all that the window lets in worked at once.
    #[must_use]
    pub fn work_at_once(mut self, work: Duration) -> Self {
        (self.work, self.at_once) = (work, true);
        self
    }

    /// With something else than an ack for some records.
    #[must_use]
    pub fn habit(mut self, habit: impl Fn(&Lease) -> Act + Send + Sync + 'static) -> Self {
        self.habit = Arc::new(habit);
        self
    }

    /// Sends so many sessions to work. They come back by themselves when their stream ends.
    #[must_use]
    pub fn start(self, sessions: usize) -> AtWork {
        let (stop, stopped) = watch::channel(false);
        let tasks = (0..sessions).map(|_| tokio::spawn(self.clone().run(stopped.clone()))).collect();
        AtWork { stop, tasks }
    }

    async fn run(self, stopped: watch::Receiver<bool>) {
        let mut attempt = 0;
        while !*stopped.borrow() {
            let address = &self.addresses[attempt % self.addresses.len()];
            attempt += 1;
            match self.connect(address).await {
                Some(mut wire) => self.session(&mut wire, &stopped).await,
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn connect(&self, address: &str) -> Option<Wire> {
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address is a URI");
        let channel = endpoint.connect_timeout(Duration::from_secs(2)).connect().await.ok()?;
        let wire = Wire::open(channel, subscribe(&self.subscription, self.window)).await.ok()?;
        Some(wire.recorded(&self.history))
    }

    /// Until its stream ends, the gateway drains it, or the crew stops.
    async fn session(&self, wire: &mut Wire, stopped: &watch::Receiver<bool>) {
        let mut at_work: VecDeque<(Instant, Lease)> = VecDeque::new();
        loop {
            let next = at_work.front().map(|(done, _)| done.saturating_duration_since(Instant::now()));
            let patience = Duration::from_millis(100);
            let seen = wire.read(next.map_or(patience, |next| next.min(patience))).await;
            let mut batch: Vec<Lease> = wire.inbox.drain(..).collect();
            if self.at_once {
                at_work.extend(batch.drain(..).map(|lease| (Instant::now() + self.work, lease)));
                let done = at_work.partition_point(|(done, _)| *done <= Instant::now());
                batch.extend(at_work.drain(..done).map(|(_, lease)| lease));
            }
            if !batch.is_empty() {
                if !self.work.is_zero() && !self.at_once {
                    tokio::time::sleep(self.work).await;
                }
                if !self.settle(wire, &batch) {
                    return;
                }
            }
            if matches!(seen, Seen::Ended(_)) {
                return;
            }
            if wire.drained || *stopped.borrow() {
                wire.half_close();
                while !matches!(wire.read(Duration::from_secs(10)).await, Seen::Ended(_) | Seen::Nothing) {}
                return;
            }
        }
    }
}

impl Crew {
    /// Acts on each record; whether the session lives.
    fn settle(&self, wire: &mut Wire, batch: &[Lease]) -> bool {
        let mut acked = Vec::new();
        for lease in batch {
            match (self.habit)(lease) {
                Act::Ack => acked.push(lease.clone()),
                Act::Retry(delay) => wire.settle(std::slice::from_ref(lease), &retry_after(delay)),
                Act::DeadLetter => wire.settle(std::slice::from_ref(lease), &dead_letter("the crew gives it up")),
                Act::Forget => {}
                Act::Die => return false,
            }
        }
        if !acked.is_empty() {
            wire.ack(&acked);
        }
        true
    }
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl AtWork {
    /// Lets each session settle what it has, closes it, and waits; a session that panicked (dealt more than its window)
    /// fails the test here.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        for task in std::mem::take(&mut self.tasks) {
            task.await.expect("a session of the crew failed");
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
