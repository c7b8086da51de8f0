//! A broker that asks who comes, and lets nobody do what no rule allows.

use std::sync::OnceLock;

use crate::gateway::GatewayConfig;
use crate::kafka::acls::{On, Operation, Right};
use crate::kafka::broker::{Broker, free_port};
use crate::kafka::client::Kafka;

/// The user that it knows.
pub const USER: &str = "sluice";
/// Of that user.
pub const PASSWORD: &str = "open-sesame";

/// See the module. The tests have a listener of their own, where everything is allowed.
#[derive(Debug)]
pub struct Guarded {
    broker: Broker,
    guarded: Kafka,
}

/// The one that all tests of a binary share: each has topics and groups of its own.
#[must_use]
pub fn guarded() -> &'static Guarded {
    static SHARED: OnceLock<Guarded> = OnceLock::new();
    SHARED.get_or_init(Guarded::start)
}

impl Guarded {
    fn start() -> Self {
        let broker = Broker::prepare();
        let address = format!("127.0.0.1:{}", free_port());
        broker.rewrite(|text| {
            let text = text
                .replace("\nlisteners=", &format!("\nlisteners=GUARDED://{address},"))
                .replace("\nadvertised.listeners=", &format!("\nadvertised.listeners=GUARDED://{address},"))
                .replace("protocol.map=", "protocol.map=GUARDED:SASL_PLAINTEXT,");
            let login = "org.apache.kafka.common.security.plain.PlainLoginModule required";
            text + &format!(
                "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
listener.name.guarded.sasl.enabled.mechanisms=PLAIN
listener.name.guarded.plain.sasl.jaas.config={login} user_{USER}=\"{PASSWORD}\";
"
            )
        });
        broker.restart();
        Self { broker, guarded: Kafka::new(address) }
    }

    /// What the tests may ask of it: everything.
    #[must_use]
    pub fn kafka(&self) -> &Kafka {
        self.broker.kafka()
    }

    /// A gateway that logs in with this password.
    #[must_use]
    pub fn gateway(&self, password: &str) -> GatewayConfig {
        GatewayConfig::new(&self.guarded).kafka(&format!(
            "properties = {{ \"security.protocol\" = \"sasl_plaintext\", \"sasl.mechanism\" = \"PLAIN\", \
             \"sasl.username\" = \"{USER}\", \"sasl.password\" = \"{password}\" }}"
        ))
    }

    /// From now on, or soon, its user may do this.
    pub fn allow(&self, operation: Operation, on: On<'_>) {
        Right { user: USER, operation, on }.allow(self.kafka().bootstrap());
    }

    /// And may not.
    pub fn take(&self, operation: Operation, on: On<'_>) {
        Right { user: USER, operation, on }.take(self.kafka().bootstrap());
    }
}
