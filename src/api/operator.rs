//! The operators' port: `/health`, `/ready`, `/metrics`. It asks nothing of Postgres, so it answers when nothing else does.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use tokio::net::TcpListener;
use warp::Filter;
use warp::http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, CONTENT_TYPE};
use warp::http::{HeaderValue, Response, StatusCode};

use super::listen::{Limits, serve_routes};
use super::reply::{self, Answer};
use super::{answered, exactly, reading};
use crate::ops::{Health, Metrics};

/// What operators may take: their programs ask every few seconds, each over a connection or two.
const LIMITS: Limits = Limits {
    connections: 64,
    one_file_in: 8,
    head_within: Duration::from_secs(10),
    oldest: Duration::from_secs(120),
    request_within: Duration::from_secs(120),
    drain: Duration::from_secs(1),
};

/// Serves the operators' port until `shutdown` ends.
pub async fn serve_operator(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    shutdown: impl Future<Output = ()> + Send,
) {
    serve_routes(listener, operator_routes(health, metrics), LIMITS, shutdown).await;
}

/// `/health` (also `/healthz`), `/ready` (also `/readyz`), `/metrics`.
pub fn operator_routes(
    health: Health,
    metrics: Metrics,
) -> impl Filter<Extract = (Answer,), Error = Infallible> + Clone + Send + Sync + 'static {
    let measured = health.clone();
    let component_health = warp::any().map(move || health.clone());
    // GET /health: 200 while the process serves, with what every component says.
    let health = exactly("/health")
        .or(exactly("/healthz"))
        .unify()
        .and(reading())
        .and(component_health.clone())
        .map(|health: Health| reply::json(&health.report()));
    // GET /ready: 200, or 503 with the reasons.
    let ready =
        exactly("/ready").or(exactly("/readyz")).unify().and(reading()).and(component_health).map(|health: Health| {
            let readiness = health.readiness();
            let mut answer = reply::json(&readiness);
            if !readiness.ready {
                *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            answer
        });
    // GET /metrics: OpenMetrics text. Readiness as of now: the task that would set it may hang.
    let metrics = exactly("/metrics").and(reading()).map(move || {
        metrics.ready.set(i64::from(measured.readiness().ready));
        let mut answer = Response::new(metrics.encode());
        answer.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
        );
        answer
    });
    answered(health.or(ready).unify().or(metrics).unify()).map(|mut answer: Answer| {
        // Not for pages in somebody's browser: it tells chains, faults and versions.
        answer.headers_mut().remove(ACCESS_CONTROL_ALLOW_ORIGIN);
        answer.headers_mut().remove(ACCESS_CONTROL_EXPOSE_HEADERS);
        answer
    })
}
