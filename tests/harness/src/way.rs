//! Connections that break: a client that is dropped half-closes its stream first, which is another thing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Weather {
    /// Nothing gets through towards the target, and nobody is told.
    dark_to: bool,
    /// Nothing gets through from the target, and nobody is told.
    dark_from: bool,
    /// Each piece is this late.
    delay: Duration,
}

/// A way to a gateway that can be cut, led to another one, stalled and slowed.
#[derive(Debug)]
pub struct Way {
    address: SocketAddr,
    target: Arc<Mutex<String>>,
    cut: watch::Sender<()>,
    weather: watch::Sender<Weather>,
}

impl Way {
    /// A way to a gateway at this address.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("a bound address");
        let target = Arc::new(Mutex::new(target.to_owned()));
        let (cut, is_cut) = watch::channel(());
        let (weather, forecast) = watch::channel(Weather::default());
        let leads_to = Arc::clone(&target);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let target = leads_to.lock().expect("not poisoned").clone();
                let (mut is_cut, forecast) = (is_cut.clone(), forecast.clone());
                is_cut.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        () = join(near, target, forecast) => {}
                        _ = is_cut.changed() => {}
                    }
                });
            }
        });
        Self { address, target, cut, weather }
    }

    /// Where it leads.
    #[must_use]
    pub fn target(&self) -> String {
        self.target.lock().expect("not poisoned").clone()
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.cut.send_replace(());
    }

    /// Leads new connections to another gateway.
    pub fn lead_to(&self, target: &str) {
        *self.target.lock().expect("not poisoned") = target.to_owned();
    }

    /// From now on nothing gets through either way, and no connection ends by it; or everything does again. As TCP has it, what
    /// was written in the dark comes late, the end of a connection too.
    pub fn set_dark(&self, dark: bool) {
        self.weather.send_modify(|weather| (weather.dark_to, weather.dark_from) = (dark, dark));
    }

    /// The same for what goes to the target alone. No new connection can be made.
    pub fn set_dark_to(&self, dark: bool) {
        self.weather.send_modify(|weather| weather.dark_to = dark);
    }

    /// The same for what comes from the target alone. No new connection can be made.
    pub fn set_dark_from(&self, dark: bool) {
        self.weather.send_modify(|weather| weather.dark_from = dark);
    }

    /// From now on each piece of each connection is this late, either way.
    pub fn set_delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }
}

async fn join(near: TcpStream, target: String, mut forecast: watch::Receiver<Weather>) {
    // A connection that is made in the dark is not answered.
    let _ = forecast.wait_for(|weather| !weather.dark_to && !weather.dark_from).await;
    let Ok(far) = TcpStream::connect(target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let to = pump(near_in, far_out, forecast.clone(), |weather| weather.dark_to);
    let from = pump(far_in, near_out, forecast, |weather| weather.dark_from);
    tokio::join!(to, from);
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut forecast: watch::Receiver<Weather>,
    is_dark: fn(&Weather) -> bool,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer).await.unwrap_or(0);
        let Ok(delay) = forecast.wait_for(|weather| !is_dark(weather)).await.map(|weather| weather.delay) else {
            return;
        };
        if count == 0 {
            break;
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
