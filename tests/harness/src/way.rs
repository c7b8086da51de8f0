//! Connections that break: a client that is dropped half-closes its stream first, which is another thing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A way to a gateway that can be cut, and led to another one.
#[derive(Debug)]
pub struct Way {
    address: SocketAddr,
    target: Arc<Mutex<String>>,
    cut: watch::Sender<()>,
}

impl Way {
    /// A way to a gateway at this address.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("a bound address");
        let target = Arc::new(Mutex::new(target.to_owned()));
        let (cut, is_cut) = watch::channel(());
        let leads_to = Arc::clone(&target);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let target = leads_to.lock().expect("not poisoned").clone();
                let mut is_cut = is_cut.clone();
                is_cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = is_cut.changed() => {}
                    }
                });
            }
        });
        Self { address, target, cut }
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
}
