use std::time::Duration;

use super::*;

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn error(text: &str) -> String {
    Config::parse("sluice.toml", text, &[]).expect_err("a mistake").to_string()
}

fn env_error(pairs: &[(&str, &str)]) -> String {
    Config::parse("sluice.toml", ORDERS, &env(pairs)).expect_err("a mistake").to_string()
}

const ORDERS: &str = "[subscriptions.orders]\ntopics = [\"orders\"]\n";

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(Config::parse("x", "", &[]).unwrap(), Config::default());
}

#[test]
fn defaults_are_the_engines_defaults() {
    let mut config = Config::default();
    config.subscriptions.insert("orders".into(), SubscriptionConfig::default());
    let policy = config.policy(&config.subscriptions["orders"]);
    let engine = sluice_core::Policy::default();
    assert_eq!(policy, sluice_core::Policy { subscription_bytes_max: 1 << 30, ..engine });
}

#[test]
fn a_dead_letter_topic_is_what_exhausted_records_go_to_unless_another_way_is_asked_for() {
    let policy = |more: &str| {
        let config = Config::parse("x", &format!("{ORDERS}{more}"), &[]).unwrap();
        let policy = config.policy(&config.subscriptions["orders"]);
        (policy.dead_letter_topic, policy.on_exhausted)
    };
    use sluice_core::OnExhausted::{Block, DeadLetter, Drop};
    assert_eq!(policy(""), (false, Block));
    assert_eq!(policy("dead_letter_topic = \"orders.dlq\""), (true, DeadLetter));
    assert_eq!(policy("dead_letter_topic = \"dlq\"\nretry = { on_exhausted = \"block\" }"), (true, Block));
    assert_eq!(policy("dead_letter_topic = \"dlq\"\nretry = { on_exhausted = \"drop\" }"), (true, Drop));
    assert_eq!(policy("dead_letter_topic = \"dlq\"\nretry = { on_exhausted = \"dead_letter\" }"), (true, DeadLetter));
}

#[test]
fn memory_that_nobody_reserved_is_shared_evenly() {
    let text = "[limits]\nmemory_budget = \"1GiB\"\n[subscriptions.a]\ntopics = [\"a\"]\nmemory_reserved = \"512MiB\"\n\
                [subscriptions.b]\ntopics = [\"b\"]\n[subscriptions.c]\ntopics = [\"c\"]\n";
    let config = Config::parse("x", text, &[]).unwrap();
    let bytes = |name: &str| config.subscription_bytes(&config.subscriptions[name]);
    assert_eq!([bytes("a"), bytes("b"), bytes("c")], [512 << 20, 256 << 20, 256 << 20]);
}

#[test]
fn durations_and_sizes_are_read_with_units() {
    let text = format!("{ORDERS}ack_timeout = \"1h 30m\"\ncommit_interval = \"50ms\"\npartition_bytes = \"3MB\"\n");
    let orders = &Config::parse("x", &text, &[]).unwrap().subscriptions["orders"];
    assert_eq!(orders.ack_timeout, Duration::from_secs(5_400));
    assert_eq!(orders.commit_interval, Duration::from_millis(50));
    assert_eq!(orders.partition_bytes, Size(3_000_000));
}

#[test]
fn sizes_are_written_in_the_largest_unit_that_fits() {
    for text in ["64MiB", "1GiB", "1500B", "3KiB", "2TiB", "0B"] {
        assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
    }
    assert_eq!("1 kB".parse::<Size>().unwrap(), Size(1_000));
    assert!("99999999999TiB".parse::<Size>().is_err());
}

#[test]
fn a_start_may_be_a_time() {
    let text = format!("{ORDERS}start = \"2026-01-31T00:00:00Z\"\n");
    let config = Config::parse("x", &text, &[]).unwrap();
    assert_eq!(config.subscriptions["orders"].start.to_string(), "2026-01-31T00:00:00Z");
}

#[test]
fn mistakes_name_file_line_and_key() {
    let mistakes = [
        format!("{ORDERS}ack_timeut = \"5m\"\n"),
        format!("{ORDERS}colour = \"red\"\n"),
        "[nod]\n".to_owned(),
        format!("{ORDERS}ack_timeout = 300\n"),
        format!("{ORDERS}ack_timeout = \"5 parsecs\"\n"),
        format!("{ORDERS}ack_timeout = \"300\"\n"),
        format!("{ORDERS}partition_bytes = \"64 monks\"\n"),
        format!("{ORDERS}partition_bytes = 64\n"),
        format!("{ORDERS}commit_count = \"many\"\n"),
        format!("{ORDERS}commit_count = -1\n"),
        format!("{ORDERS}start = \"yesterday\"\n"),
        format!("{ORDERS}assignor = \"sticky\"\n"),
        format!("{ORDERS}ordering = \"topic\"\n"),
        format!("{ORDERS}retry = {{ on_exhausted = \"deadletter\" }}\n"),
        format!("{ORDERS}retry = {{ max_attempt = 3 }}\n"),
        "[node]\nlisten = \"localhost\"\n".to_owned(),
        format!("{ORDERS}topics = [\"b\"]\n"),
        format!("{ORDERS}\n{ORDERS}"),
        "[node]\nlisten = \n".to_owned(),
        "topics".to_owned(),
    ];
    let errors: Vec<_> = mistakes.iter().map(|text| error(text)).collect();
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn values_that_contradict_each_other_name_the_key_to_change() {
    let mistakes = [
        "[subscriptions.a]\ntopics = [\"t\"]\ngroup = \"g\"\n\n[subscriptions.b]\ntopics = [\"t\"]\ngroup = \"g\"\n"
            .to_owned(),
        "[subscriptions.a]\ngroup = \"g\"\n".to_owned(),
        "[subscriptions.a]\ntopics = [\"t\", \"t\", \"bad name\"]\n".to_owned(),
        format!("{ORDERS}ack_timeout = \"13h\"\n"),
        format!("{ORDERS}max_ack_timeout = \"1m\"\n"),
        format!("{ORDERS}revoke_grace = \"11s\"\n"),
        format!("{ORDERS}revoke_grace = \"6s\"\nkafka = {{ \"max.poll.interval.ms\" = \"10000\" }}\n"),
        format!("{ORDERS}heartbeat_interval = \"10s\"\n"),
        format!("{ORDERS}protocol = \"consumer\"\nassignor = \"range\"\nkafka_session_timeout = \"6s\"\n"),
        format!("{ORDERS}prefetch = \"1B\"\ncommit_interval = \"0s\"\nmetadata_refresh = \"2h\"\n"),
        format!("{ORDERS}retry = {{ max_attempts = 0, multiplier = 0.5, jitter = 2.0, max_backoff = \"10ms\" }}\n"),
        format!("{ORDERS}retry = {{ on_exhausted = \"dead_letter\" }}\n"),
        format!("{ORDERS}dead_letter_topic = \"orders\"\n"),
        format!("{ORDERS}dead_letter_topic = \"orders/dlq\"\n"),
        format!("{ORDERS}max_record_bytes = \"0B\"\ntoo_large_after = \"0s\"\nstuck_after = \"0s\"\n"),
        format!("{ORDERS}kafka = {{ \"group.id\" = \"x\" }}\n"),
        format!("{ORDERS}[subscriptions.orders.kafka]\n\"fetch.wait.max\" = \"10\"\n"),
        format!("[node]\nname = \"{}\"\n", "n".repeat(200)),
        "[node]\nping_interval = \"1m\"\nadmin_listen = \"127.0.0.1:7070\"\n".to_owned(),
        "[kafka]\nbrokers = \"localhost\"\n".to_owned(),
        "[log]\nlevel = \"a=b=c\"\n".to_owned(),
        "[peers]\naddresses = [\"a:1\"]\ndns = \"b:1\"\n".to_owned(),
        "[peers]\nlisten = \"0.0.0.0:7072\"\n".to_owned(),
        "[peers]\nlisten = \"127.0.0.1:7070\"\naddresses = [\"a\"]\ndns = \"b\"\nadvertise = \"c\"\ntimeout = \"1s\"\nconnections = 0\n"
            .to_owned(),
        "[peers.tls]\ncert = \"a.pem\"\n".to_owned(),
        "[peers]\nlisten = \"0.0.0.0:7072\"\nplain = true\nfrom_group = true\n".to_owned(),
        "[peers]\nlisten = \"0.0.0.0:7072\"\ndns = \"b:1\"\nplain = true\n\n[peers.tls]\nca = \"a.pem\"\n".to_owned(),
        "[peers]\nlisten = \"0.0.0.0:7072\"\ndns = \"b:1\"\n\n[peers.tls]\ncert = \"a\"\nkey = \"/no/key.pem\"\nca = \"b\"\n\
         identities = [\"c\"]\n"
            .to_owned(),
        "[limits]\ndead_letter_timeout = \"2h\"\ndead_letter_queue = \"1MiB\"\n".to_owned(),
        format!("[limits]\nmemory_budget = \"1MiB\"\nmax_streams = 0\n{ORDERS}memory_reserved = \"2MiB\"\n"),
    ];
    let errors: Vec<_> = mistakes.iter().map(|text| error(text)).collect();
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn every_key_has_an_override_of_its_kind() {
    let variables = [
        ("SLUICE_NODE__LISTEN", "0.0.0.0:1"),
        ("SLUICE_LOG__FORMAT", "json"),
        ("SLUICE_LIMITS__MAX_STREAMS", "7"),
        ("SLUICE_PEERS__LISTEN", "127.0.0.1:1"),
        ("SLUICE_PEERS__DNS", "a:1"),
        ("SLUICE_KAFKA__PROPERTIES__SASL_PASSWORD", "a,b=c"),
        ("SLUICE_SUBSCRIPTIONS__ORDERS__TOPICS", "a, b"),
        ("SLUICE_SUBSCRIPTIONS__ORDERS__ACK_TIMEOUT", "7m"),
        ("SLUICE_SUBSCRIPTIONS__ORDERS__MEMORY_RESERVED", "9MiB"),
        ("SLUICE_SUBSCRIPTIONS__ORDERS__RETRY__JITTER", "0.5"),
        ("SLUICE_SUBSCRIPTIONS__ORDERS__KAFKA__FETCH_WAIT_MAX_MS", "10"),
    ];
    let config = Config::parse("x", ORDERS, &env(&variables)).unwrap();
    assert_eq!(config.node.listen.port(), 1);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.limits.max_streams, 7);
    assert_eq!(config.kafka.properties["sasl.password"], "a,b=c");
    let orders = &config.subscriptions["orders"];
    assert_eq!(orders.topics, ["a", "b"]);
    assert_eq!(orders.ack_timeout, Duration::from_secs(420));
    assert_eq!(orders.memory_reserved, Some(Size::mib(9)));
    assert!((orders.retry.jitter - 0.5).abs() < f64::EPSILON);
    assert_eq!(orders.kafka["fetch.wait.max.ms"], "10");
}

#[test]
fn an_override_finds_a_subscription_whose_name_has_other_characters() {
    let text = "[subscriptions.pod-events]\ntopics = [\"t\"]\n";
    let variables = env(&[("SLUICE_SUBSCRIPTIONS__POD_EVENTS__COMMIT_COUNT", "3")]);
    assert_eq!(Config::parse("x", text, &variables).unwrap().subscriptions["pod-events"].commit_count, 3);
}

#[test]
fn what_kubernetes_sets_for_a_service_named_sluice_is_no_override() {
    let variables = env(&[("SLUICE_SERVICE_HOST", "10.0.0.1"), ("SLUICE_PORT_7070_TCP_PORT", "7070"), ("PATH", "/")]);
    assert!(Config::parse("x", ORDERS, &variables).is_ok());
}

#[test]
fn a_wrong_override_names_the_variable() {
    let errors = [
        env_error(&[("SLUICE_NODE__LISTN", "x")]),
        env_error(&[("SLUICE_NODE_LISTEN", "x")]),
        env_error(&[("SLUICE_SUBSCRIPTIONS__PAYMENTS__GROUP", "x")]),
        env_error(&[("SLUICE_NODE__LISTEN", "x")]),
        env_error(&[("SLUICE_LIMITS__MAX_STREAMS", "few")]),
        env_error(&[("SLUICE_KAFKA__PROPERTIES", "a=b")]),
        env_error(&[("SLUICE_ZOO__BEAR", "x")]),
        env_error(&[("SLUICE_SUBSCRIPTIONS__ORDERS__ACK_TIMEOUT", "13h"), ("SLUICE_NODE__PING_INTERVAL", "1h")]),
        env_error(&[("SLUICE_SUBSCRIPTIONS__ORDERS__REVOKE_GRACE", "11s")]),
    ];
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn the_effective_config_hides_secrets_and_can_be_read_again() {
    let text = format!(
        "[kafka.properties]\n\"sasl.password\" = \"hunter2\"\n{ORDERS}kafka = {{ \"ssl.key.password\" = \"x1\" }}\n"
    );
    let shown = Config::parse("x", &text, &[]).unwrap().to_toml();
    assert!(!shown.contains("hunter2") && !shown.contains("x1"), "{shown}");
    let again = Config::parse("x", &shown, &[]).unwrap();
    assert_eq!(again.kafka.properties["sasl.password"], "***");
    assert_eq!(again.subscriptions["orders"].topics, ["orders"]);
}
