//! The admin listener: `/metrics`, `/healthz`, `/readyz`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Map, Value, json};
use sluice_kafka::KafkaState;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Exporter;
use crate::node::Shared;
use crate::subscription::Membership;

/// Prometheus' text format.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4";

#[derive(Debug, Clone)]
struct Admin {
    shared: Arc<Shared>,
    exporter: Arc<Exporter>,
}

/// Serves until the token is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    exporter: Arc<Exporter>,
    close: CancellationToken,
) {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Admin { shared, exporter });
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(close.cancelled_owned()).await {
        tracing::error!(%error, "the admin listener failed");
    }
}

/// Not well only when waiting does not mend it: a driver that stopped though nobody asked. Then a restart does.
async fn healthz(State(admin): State<Admin>) -> Response {
    match admin.shared.stopped_driver() {
        None => "ok\n".into_response(),
        Some(name) => (StatusCode::SERVICE_UNAVAILABLE, format!("{name}: the driver has stopped\n")).into_response(),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], admin.exporter.render().await).into_response()
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let why = admin.shared.not_ready();
    let status = if why.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "ready": why.is_empty(),
        "why": why,
        "draining": admin.shared.leaving.load(Ordering::Acquire),
        "subscriptions": subscriptions(&admin.shared),
    });
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (status, content_type, format!("{body}\n")).into_response()
}

fn subscriptions(shared: &Shared) -> Map<String, Value> {
    let row = |handle: &crate::subscription::Handle| {
        let state = handle.state();
        let (kafka, detail) = match state.kafka {
            KafkaState::Idle => ("idle", None),
            KafkaState::Reachable => ("reachable", None),
            KafkaState::Unreachable(error) => ("unreachable", Some(error)),
            KafkaState::TopicMissing(topic) => ("topic_missing", Some(topic)),
            KafkaState::RightsMissing(missing) => ("rights_missing", Some(missing.to_string())),
            KafkaState::Unknown => ("unknown", None),
            KafkaState::Refused(error) => ("refused", Some(error)),
        };
        let membership = match state.membership {
            Membership::Idle => "idle",
            Membership::Joined => "joined",
            Membership::Draining => "draining",
            Membership::Leaving => "leaving",
        };
        json!({
            "kafka": kafka,
            "detail": detail,
            "membership": membership,
            "paused": state.pause.paused,
            "dead_letters": state.dead_letter_error,
        })
    };
    shared.subscriptions.iter().map(|(name, handle)| (name.clone(), row(handle))).collect()
}
