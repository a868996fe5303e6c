//! Accepts a port's connections within its limits, hands their requests to the routes, and ends when told to.
//!
//! A loop of our own: warp's takes as many connections as there are open files, keeps idle ones for ever, and panics at a
//! request whose target is no path.

use std::convert::Infallible;
use std::future::Future;
use std::io::{Error, ErrorKind};
use std::pin::pin;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use warp::{Filter, Reply};

use super::reply::{Answer, Failure};

/// Longest head of a request, in bytes. Twice the longest URI (8 KiB), and room for the headers of a browser.
const LONGEST_HEAD_BYTES: usize = 32 * 1024;
/// Pause after the system refused a connection. It lacks files or memory, which others have to give back first; without a
/// pause the loop would take a whole core to ask.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What a port takes from its clients. Each port has its own, so that clients of one cannot close the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most connections open at once. Further ones wait in the kernel's queue.
    pub(super) connections: usize,
    /// One in how many of the files that the process may open is the most for this port's connections. The rest is for the
    /// database, the sources and the other port.
    pub(super) one_file_in: u64,
    /// Longest from the opening of a connection, or from the answer before, until the head of a request is there. So long an
    /// idle client keeps its connection.
    pub(super) head_within: Duration,
    /// The first answer from this age on is a connection's last, and says so: closed while it is idle, it would fail a request
    /// that is on its way.
    pub(super) oldest: Duration,
    /// How long that last request may take, its answer read by the client; then it is cut, so that a client that does not read
    /// cannot hold a connection for ever.
    pub(super) request_within: Duration,
    /// How long requests in hand may take once the port is to end; then they are cut.
    pub(super) drain: Duration,
}

impl Limits {
    fn most_connections(&self) -> usize {
        let files = getrlimit(Resource::Nofile).current;
        let share = files.map_or(usize::MAX, |files| usize::try_from(files / self.one_file_in).unwrap_or(usize::MAX));
        self.connections.min(share).max(1)
    }
}

/// Answers clients of this port until `shutdown` ends, then lets the requests in hand finish for `limits.drain`.
pub(super) async fn serve_routes<F>(
    listener: TcpListener,
    routes: F,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send,
) where
    F: Filter<Extract = (Answer,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    let most = limits.most_connections();
    let stop = CancellationToken::new();
    // Dropped, it cuts what is left.
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let mut refused = false;
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < most => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                refused = false;
                connections.spawn(converse(stream, routes.clone(), limits, stop.clone()));
            }
            Err(error) if is_about_one_connection(&error) => tracing::debug!(%error, "A client left while it came"),
            Err(error) => {
                if !std::mem::replace(&mut refused, true) {
                    tracing::warn!(%error, open = connections.len(), "No further connection can be accepted for now");
                }
                tokio::select! {
                    () = &mut shutdown => break,
                    () = tokio::time::sleep(ACCEPT_AGAIN_AFTER) => {}
                }
            }
        }
    }
    drop(listener);
    stop.cancel();
    let all_end = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, all_end).await.is_err() {
        tracing::debug!(drain_ms = limits.drain.as_millis() as u64, "Closed the remaining connections");
    }
}

/// Says nothing of the next connection.
fn is_about_one_connection(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::Interrupted
    )
}

/// Answers the requests of one connection, one after the other.
async fn converse<F>(stream: TcpStream, routes: F, limits: Limits, stop: CancellationToken)
where
    F: Filter<Extract = (Answer,), Error = Infallible> + Clone + Send + Sync + 'static,
    F::Future: Send,
{
    // An answer of several packets is not held back until the client has acknowledged the first.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "A client left while it came");
        return;
    }
    let opened = Instant::now();
    let routes = TowerToHyperService::new(warp::service(routes));
    let answering = service_fn(move |request: Request<Incoming>| {
        // CONNECT host:port, GET host:port and OPTIONS *: warp's filters take a path for granted.
        let is_path = request.uri().path().starts_with('/');
        // A request is carried to its end though its client leaves: dropped in the middle, it would give a connection back
        // to the next one with a statement still running on it.
        let routed = is_path.then(|| tokio::spawn(routes.call(request)));
        async move {
            let mut answer = match routed {
                Some(answer) => answer.await.unwrap_or_else(|error| {
                    tracing::error!(%error, "A request ended by a fault of ours");
                    Ok(Failure::internal().into_answer().into_response())
                })?,
                None => Failure::invalid_target().into_answer().into_response(),
            };
            if opened.elapsed() >= limits.oldest {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_within)
        .max_buf_size(LONGEST_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), answering);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(limits.oldest + limits.head_within + limits.request_within) => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // Cut after a while: the port drops this.
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "A connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{answered, exactly, reply};
    use std::net::SocketAddr;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::{Notify, oneshot};

    const LIMITS: Limits = Limits {
        connections: 2,
        one_file_in: 2,
        head_within: Duration::from_millis(300),
        oldest: Duration::from_secs(60),
        request_within: Duration::from_millis(300),
        drain: Duration::from_millis(300),
    };

    struct Port {
        address: SocketAddr,
        /// Told of each request that will never be answered, or not yet.
        asked: Arc<Notify>,
        /// Has one that waits answered.
        answers: Arc<Notify>,
        stop: oneshot::Sender<()>,
        serving: tokio::task::JoinHandle<()>,
    }

    /// A port with one route, `/`, that answers at once, another, `/later`, that answers when it is told to, and `/never`.
    async fn open(limits: Limits) -> Port {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let now = exactly("/").map(|| reply::json(&"here"));
        let asked = Arc::new(Notify::new());
        let answers = Arc::new(Notify::new());
        let (told, answered_by) = (asked.clone(), answers.clone());
        let later = exactly("/later").and_then(move || {
            told.notify_one();
            let answered_by = answered_by.clone();
            async move {
                answered_by.notified().await;
                Ok::<_, warp::Rejection>(reply::json(&"here"))
            }
        });
        let told = asked.clone();
        let never = exactly("/never").and_then(move || {
            told.notify_one();
            std::future::pending::<Result<Answer, warp::Rejection>>()
        });
        let serving = serve_routes(listener, answered(now.or(later).unify().or(never).unify()), limits, async {
            let _ = stopped.await;
        });
        Port { address, asked, answers, stop, serving: tokio::spawn(serving) }
    }

    /// What comes until the other side closes.
    async fn rest_of(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        // A reset is a close as well.
        let _ = stream.read_to_end(&mut bytes).await;
        String::from_utf8(bytes).expect("text")
    }

    async fn ask(stream: &mut TcpStream, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it is sent");
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"here\"") {
            assert_ne!(
                stream.read_buf(&mut bytes).await.expect("it answers"),
                0,
                "{}",
                String::from_utf8_lossy(&bytes)
            );
        }
        String::from_utf8(bytes).expect("text")
    }

    /// Asks again and again until an answer says that it is the last; how many there were.
    async fn ask_until_it_is_old(stream: &mut TcpStream) -> usize {
        for answers in 1.. {
            ask(stream, "/").await;
            let answer = answer(stream).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            if answer.contains("connection: close\r\n") {
                return answers;
            }
        }
        unreachable!()
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.expect("it is taken, or waits")
    }

    #[tokio::test]
    async fn a_client_above_the_limit_waits_until_an_idle_one_is_closed() {
        let port = open(LIMITS).await;
        let address = port.address;
        let (mut silent, mut slow) = (connect(address).await, connect(address).await);
        slow.write_all(b"GET / HTTP/1.1\r\n").await.expect("half a head");
        let mut third = connect(address).await;
        ask(&mut third, "/").await;
        let begun = std::time::Instant::now();
        assert!(answer(&mut third).await.starts_with("HTTP/1.1 200"));
        assert!(begun.elapsed() >= LIMITS.head_within / 2, "there was a place for it at once");
        assert_eq!(rest_of(&mut silent).await, "");
        assert!(!rest_of(&mut slow).await.contains("200"));
        // An idle connection that was used before goes the same way.
        assert_eq!(rest_of(&mut third).await, "");
    }

    #[tokio::test]
    async fn a_connection_answers_many_requests_until_it_is_old() {
        let limits = Limits { oldest: Duration::from_millis(400), ..LIMITS };
        let port = open(limits).await;
        let address = port.address;
        let (mut stream, begun) = (connect(address).await, std::time::Instant::now());
        assert!(ask_until_it_is_old(&mut stream).await > 1);
        assert!(begun.elapsed() >= limits.oldest / 2, "it was young");
        assert_eq!(rest_of(&mut stream).await, "", "it is closed although the client would stay");
        let mut stuck = connect(address).await;
        ask(&mut stuck, "/never").await;
        assert_eq!(rest_of(&mut stuck).await, "", "an answer that never comes does not hold the place");
    }

    #[tokio::test]
    async fn a_request_in_hand_has_its_time_although_its_connection_is_old() {
        let limits = Limits {
            connections: 9,
            head_within: Duration::from_secs(60),
            oldest: Duration::from_millis(200),
            request_within: Duration::from_secs(60),
            drain: Duration::from_millis(50),
            ..LIMITS
        };
        let Port { address, asked, answers, stop, serving } = open(limits).await;
        let (mut busy, mut lost) = (connect(address).await, connect(address).await);
        for (stream, path) in [(&mut busy, "/later"), (&mut lost, "/never")] {
            ask(stream, path).await;
            asked.notified().await;
        }
        // When one that came later is old, those are, and at the second for longer than the drain.
        for _ in 0..2 {
            let mut later = connect(address).await;
            ask_until_it_is_old(&mut later).await;
            assert_eq!(rest_of(&mut later).await, "");
        }
        answers.notify_one();
        let whole = rest_of(&mut busy).await;
        assert!(whole.starts_with("HTTP/1.1 200") && whole.ends_with("here\""), "{whole}");
        // Closed after that answer: it takes no further request. And at a stop nobody waits for what never comes.
        let begun = std::time::Instant::now();
        stop.send(()).expect("it serves");
        serving.await.expect("it ends");
        assert!(begun.elapsed() < limits.request_within / 2, "the stop waited for an old connection");
        assert_eq!(rest_of(&mut lost).await, "");
    }

    #[tokio::test]
    async fn a_stop_closes_idle_connections_and_gives_requests_in_hand_their_time() {
        let limits = Limits { connections: 9, head_within: Duration::from_secs(60), ..LIMITS };
        let Port { address, asked, stop, serving, .. } = open(limits).await;
        let (mut idle, mut busy) = (connect(address).await, connect(address).await);
        ask(&mut idle, "/").await;
        answer(&mut idle).await;
        ask(&mut busy, "/never").await;
        asked.notified().await;
        let begun = std::time::Instant::now();
        stop.send(()).expect("it serves");
        assert_eq!(rest_of(&mut idle).await, "");
        assert!(begun.elapsed() < limits.drain / 2, "the idle one had to wait");
        serving.await.expect("it ends");
        assert!(begun.elapsed() >= limits.drain - Duration::from_millis(10), "the request had no time");
        assert_eq!(rest_of(&mut busy).await, "");
    }

    #[tokio::test]
    async fn connections_are_well_below_the_open_files() {
        let files = getrlimit(Resource::Nofile).current.expect("a limit");
        let many = Limits { connections: usize::MAX, ..LIMITS };
        assert_eq!(many.most_connections() as u64, files / 2);
        assert_eq!(Limits { one_file_in: 4 * files, ..many }.most_connections(), 1, "never none");
        assert_eq!(LIMITS.most_connections(), 2);
    }
}
