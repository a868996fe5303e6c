//! REST: it only reads. Every answer is one snapshot and names the block it is true at.
//!
//! Paths are matched raw, before percent-decoding, since token paths hold slashes. A route that fails on purpose answers
//! with a `reply::Failure`; warp's own rejections are brought into the same shape in [`routes`].

mod accounts;
mod chains;
mod cursor;
mod listen;
mod lists;
mod moment;
mod operator;
mod reply;
mod request;
mod schemas;
mod tokens;
mod vaults;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use warp::http::Method;
use warp::{Filter, Rejection};

use crate::store::Store;
use crate::store::reads::Readers;
use listen::{Limits, serve_routes};
use reply::{Answer, Failure};

pub use operator::{operator_routes, serve_operator};
pub use schemas::SCHEMAS;

/// Longest path and query together, in bytes.
const LONGEST_URI_BYTES: usize = 8 * 1024;

/// What REST clients may take. 1,024 connections cost 32 MiB of heads at worst; a browser or a pool of an application that
/// is idle for ten seconds can connect again in a millisecond, and an answer of a thousand rows is read in less than two
/// minutes over any line.
const LIMITS: Limits = Limits {
    connections: 1_024,
    one_file_in: 2,
    head_within: Duration::from_secs(10),
    oldest: Duration::from_secs(120),
    request_within: Duration::from_secs(120),
    drain: Duration::from_secs(5),
};

/// How the interface behaves.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// Whether a balance below zero, which the ledger keeps exact, is shown as it is, and not as 0. `X-Negative-Balances` counts
    /// them either way. Defaults to false.
    pub shows_negative: bool,
    /// Longest a statement of a request may run; then it is answered with 503. Defaults to 10 s.
    pub read_timeout: Duration,
    /// How long requests in hand may take once the server was told to stop; then they are cut. Defaults to 5 s.
    pub drain: Duration,
}

impl Default for ApiSettings {
    fn default() -> ApiSettings {
        ApiSettings { shows_negative: false, read_timeout: Duration::from_secs(10), drain: LIMITS.drain }
    }
}

/// What every handler needs.
#[derive(Clone)]
struct Context {
    store: Readers,
    settings: Arc<ApiSettings>,
}

/// Serves the REST interface until `shutdown` ends, then lets the requests in hand finish for `settings.drain`.
pub async fn serve(
    listener: TcpListener,
    store: Store,
    settings: ApiSettings,
    shutdown: impl Future<Output = ()> + Send,
) {
    let limits = Limits { drain: settings.drain, ..LIMITS };
    serve_routes(listener, routes(store, settings), limits, shutdown).await;
}

/// All routes, with every failure as JSON.
pub fn routes(
    store: Store,
    settings: ApiSettings,
) -> impl Filter<Extract = (Answer,), Error = Infallible> + Clone + Send + Sync + 'static {
    let context = Context { store: store.readers(settings.read_timeout), settings: Arc::new(settings) };
    let all = tokens::routes(context.clone())
        .or(chains::routes(context.clone()))
        .unify()
        .or(vaults::routes(context.clone()))
        .unify()
        .or(accounts::routes(context))
        .unify()
        .or(schemas::routes())
        .unify();
    answered(all)
}

/// Bounds the URI, turns rejections into answers, and takes the body off answers to HEAD.
fn answered<F>(routes: F) -> impl Filter<Extract = (Answer,), Error = Infallible> + Clone + Send + Sync + 'static
where
    F: Filter<Extract = (Answer,), Error = Rejection> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    // Boxed, since the type of a few dozen combined filters takes long to check.
    let routes = short_uri().and(routes).boxed().recover(explain).unify();
    warp::method().and(routes).map(|method: Method, answer: Answer| reply::for_method(&method, answer))
}

/// Rejection: the URI is too long.
#[derive(Debug)]
struct UriTooLong;

impl warp::reject::Reject for UriTooLong {}

fn short_uri() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    warp::path::full()
        .and(query())
        .and_then(|path: warp::path::FullPath, query: String| async move {
            if path.as_str().len() + query.len() > LONGEST_URI_BYTES {
                return Err(warp::reject::custom(UriTooLong));
            }
            Ok(())
        })
        .untuple_one()
}

/// The raw query; empty when there is none.
fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Clone {
    warp::query::raw().or_else(|_| async { Ok::<_, Infallible>((String::new(),)) })
}

/// GET, and HEAD, which is a GET whose body is left out.
fn reading() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    warp::get().or(warp::head()).unify()
}

/// Exactly this path, byte for byte: no trailing slash, no escapes.
fn exactly(wanted: &'static str) -> impl Filter<Extract = (), Error = Rejection> + Clone {
    warp::path::full()
        .and_then(move |path: warp::path::FullPath| async move {
            if path.as_str() == wanted { Ok(()) } else { Err(warp::reject::not_found()) }
        })
        .untuple_one()
}

async fn explain(rejection: Rejection) -> Result<Answer, Infallible> {
    let failure = if rejection.find::<UriTooLong>().is_some() {
        Failure::uri_too_long()
    } else if rejection.find::<warp::reject::MethodNotAllowed>().is_some() {
        Failure::method_not_allowed()
    } else if rejection.is_not_found() {
        Failure::not_found()
    } else {
        tracing::error!(?rejection, "A request was rejected for a reason no route knows");
        Failure::internal()
    };
    Ok(failure.into_answer())
}
