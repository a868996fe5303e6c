//! Subscriptions over a WebSocket, as bells and nothing more: what rings is never believed, only looked at.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use rand::RngExt;
use reqwest::Url;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::http::{Secrets, shown};
use super::server::shortened;
use super::websocket::{self, Socket};

const PING_EVERY: Duration = Duration::from_secs(15);
/// Most messages that are read in a second, pings among them: a server that sends more waits. An indexer that catches up
/// pushes hundreds.
const MESSAGES_A_SECOND: u32 = 1_000;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How servers of one kind are made to ring.
#[derive(Debug)]
pub(crate) struct Manner {
    /// The subprotocol that the server must agree to speak. None means plain messages.
    pub(crate) subprotocol: Option<&'static str>,
    /// What is said first.
    pub(crate) greeting: &'static str,
    /// What a message means, or why it ends the subscription, in the server's own words.
    pub(crate) hear: fn(&str) -> Result<Heard, String>,
    /// A ping in the protocol's own words. None means WebSocket's, for which any message is a sign of life.
    pub(crate) ping: Option<&'static str>,
    /// So many pings without a sign of life end the connection.
    pub(crate) missed_pings: u32,
    /// Shortest time between two wakes: a server that rings without end must not be asked without end.
    pub(crate) between_wakes: Duration,
}

/// What a message means.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// There may be something new.
    pub(crate) rings: bool,
    /// It answers a ping.
    pub(crate) is_pong: bool,
    /// What to answer.
    pub(crate) answer: Option<&'static str>,
}

/// When to look again: at a ring, if there is a WebSocket, and else after a while.
#[derive(Debug)]
pub(crate) struct Bell {
    url: Option<Url>,
    manner: &'static Manner,
    listener: OnceLock<Listener>,
    last_wake: Mutex<Option<Instant>>,
}

impl Bell {
    /// Asks nobody yet. Without a URL there is only the clock.
    pub(crate) fn new(url: Option<Url>, manner: &'static Manner) -> Bell {
        Bell { url, manner, listener: OnceLock::new(), last_wake: Mutex::new(None) }
    }

    /// Returns when there may be something new, at the latest after `at_most`.
    ///
    /// # Cancel safety
    /// A ring that came while this was dropped is kept for the next call.
    pub(crate) async fn wait(&self, at_most: Duration) {
        let Some(url) = &self.url else { return tokio::time::sleep(at_most).await };
        let listener = self.listener.get_or_init(|| Listener::start(url.clone(), self.manner));
        let pause = self.until_next_wake().min(at_most);
        tokio::time::sleep(pause).await;
        // Both ends are the same to the caller: look again.
        let _ = timeout(at_most - pause, listener.bell.notified()).await;
        *self.last_wake.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn until_next_wake(&self) -> Duration {
        let last = *self.last_wake.lock().unwrap_or_else(PoisonError::into_inner);
        last.map_or(Duration::ZERO, |last| self.manner.between_wakes.saturating_sub(last.elapsed()))
    }
}

/// A subscription that reconnects for as long as this lives.
#[derive(Debug)]
struct Listener {
    bell: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Must be called inside a runtime.
    fn start(url: Url, manner: &'static Manner) -> Listener {
        let bell = Arc::new(Notify::new());
        let task = tokio::spawn(keep_listening(url, manner, Arc::clone(&bell)));
        Listener { bell, task }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_listening(url: Url, manner: &'static Manner, bell: Arc<Notify>) {
    let (node, secrets) = (shown(&url), Secrets::of(&url));
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        let since = Instant::now();
        let why = match listen_once(&url, manner, &bell, PING_EVERY).await {
            Ok(never) => match never {},
            Err(why) => shortened(&secrets, &why),
        };
        if since.elapsed() > LONGEST_PAUSE {
            (pause, told) = (FIRST_PAUSE, false);
        }
        // Polling goes on meanwhile, so a server without subscriptions is worth one line, not one a minute.
        if told {
            tracing::debug!(%node, %why, "no subscription");
        } else {
            tracing::warn!(%node, %why, "No subscription to new blocks: polling until there is one");
        }
        told = true;
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[derive(Debug)]
pub(crate) enum Never {}

/// Listens until the subscription ends; why.
pub(crate) async fn listen_once(
    url: &Url,
    manner: &Manner,
    bell: &Notify,
    ping_every: Duration,
) -> Result<Never, String> {
    let mut socket = match manner.subprotocol {
        Some(protocol) => websocket::connect_speaking(url, protocol).await?,
        None => websocket::connect(url).await?,
    };
    say(&mut socket, Message::text(manner.greeting)).await?;
    let mut pings = interval(ping_every);
    let mut unanswered = 0;
    let (mut second, mut messages) = (Instant::now(), 0);
    loop {
        if messages >= MESSAGES_A_SECOND {
            tokio::time::sleep_until(second + Duration::from_secs(1)).await;
        }
        if second.elapsed() >= Duration::from_secs(1) {
            (second, messages) = (Instant::now(), 0);
        }
        tokio::select! {
            message = socket.next() => {
                messages += 1;
                if manner.ping.is_none() {
                    unanswered = 0;
                }
                match message {
                    Some(Ok(Message::Text(text))) => {
                        let heard = (manner.hear)(&text)?;
                        if let Some(answer) = heard.answer {
                            say(&mut socket, Message::text(answer)).await?;
                        }
                        if heard.is_pong {
                            unanswered = 0;
                        }
                        if heard.rings {
                            bell.notify_one();
                        }
                    }
                    Some(Ok(Message::Close(_))) | None => return Err("the server closed it".into()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.to_string()),
                }
            }
            _ = pings.tick() => {
                if unanswered >= manner.missed_pings {
                    return Err(format!("{unanswered} pings were not answered"));
                }
                unanswered += 1;
                say(&mut socket, manner.ping.map_or_else(|| Message::Ping(Vec::new().into()), Message::text)).await?;
            }
        }
    }
}

async fn say(socket: &mut Socket, message: Message) -> Result<(), String> {
    let sent = timeout(PING_EVERY, socket.send(message)).await;
    sent.map_err(|_| "stuck".to_owned())?.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::Bytes;

    use super::*;

    static HEARD: AtomicU64 = AtomicU64::new(0);

    static COUNTS: Manner = Manner {
        subprotocol: None,
        greeting: "{}",
        hear: |_| {
            HEARD.fetch_add(1, Ordering::Relaxed);
            Ok(Heard { rings: true, ..Heard::default() })
        },
        ping: None,
        missed_pings: 3,
        between_wakes: Duration::from_millis(200),
    };

    /// A server that sends this without end, and reads nothing.
    async fn flooding(message: Message) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("ws://{}/", listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a handshake");
            while socket.send(message.clone()).await.is_ok() {}
        });
        Url::parse(&url).expect("a URL")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_flood_of_messages_is_read_slowly_and_wakes_rarely() {
        let bell = Bell::new(Some(flooding(Message::text("{}")).await), &COUNTS);
        let begun = Instant::now();
        let (wakes, longest) = (8, Duration::from_secs(20));
        for _ in 0..wakes {
            bell.wait(longest).await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let heard = HEARD.load(Ordering::Relaxed);
        assert!(heard <= u64::from(MESSAGES_A_SECOND) * (seconds as u64 + 1), "{heard} messages in {seconds} s");
        assert!(f64::from(wakes) <= seconds * 5.0 + 1.0, "{wakes} wakes in {seconds} s");
        assert!(begun.elapsed() < longest, "none of them waited in vain: {seconds} s");
    }

    /// Memory of this process that is in use, in bytes; none where the system does not tell (it is not Linux).
    fn resident_bytes() -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
        Some(kib.parse::<u64>().ok()? << 10)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_flood_of_pings_takes_no_memory() {
        let url = flooding(Message::Ping(Bytes::from(vec![7; 125]))).await;
        let bell = Bell::new(Some(url), &COUNTS);
        bell.wait(Duration::from_millis(500)).await;
        let Some(before) = resident_bytes() else { return };
        bell.wait(Duration::from_secs(2)).await;
        let grown = resident_bytes().expect("as before").saturating_sub(before);
        assert!(grown < 8 << 20, "{grown} bytes more");
    }

    static REFUSED: Manner = Manner { hear: |text| Err(text.to_owned()), ..COUNTS };

    #[tokio::test]
    async fn what_is_logged_of_a_subscription_holds_no_key_and_nothing_that_a_terminal_obeys() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let url = Url::parse(&format!("ws://{address}/v1/0123456789abcdef")).expect("a URL");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let logs = tracing_subscriber::fmt().with_ansi(false).with_writer(file.reopen().expect("the file"));
        let _here = tracing::subscriber::set_default(logs.finish());
        // It comes again once it has told why.
        let refused_twice = async {
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.expect("a connection");
                let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a handshake");
                let said = format!("\u{1b}[31m{}project 0123456789abcdef is unknown\n", "x".repeat(275));
                socket.send(Message::text(said)).await.expect("it listens");
            }
        };
        tokio::select! {
            () = refused_twice => {}
            () = keep_listening(url, &REFUSED, Arc::default()) => {}
        }
        let text = std::fs::read_to_string(file.path()).expect("text");
        let told = text.lines().find(|line| line.contains("No subscription to new blocks")).expect(&text);
        assert!(told.contains(r"\u001b[31mxx") && told.contains("project ***"), "{text}");
        assert!(!text.contains("0123") && !told.chars().any(char::is_control), "{text}");
    }
}
