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

use super::http::shown;
use super::websocket::{self, Socket};

const PING_EVERY: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How servers of one kind are made to ring.
#[derive(Debug)]
pub(crate) struct Manner {
    /// The subprotocol that the server must agree to speak. None means plain messages.
    pub(crate) subprotocol: Option<&'static str>,
    /// What is said first.
    pub(crate) greeting: &'static str,
    /// What a message means, or why it ends the subscription.
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
    let node = shown(&url);
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        let since = Instant::now();
        let why = match listen_once(&url, manner, &bell, PING_EVERY).await {
            Ok(never) => match never {},
            Err(why) => why,
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
    loop {
        tokio::select! {
            message = socket.next() => {
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

/// What a server said, fit to be shown.
pub(crate) fn shortened(said: &str) -> String {
    said.chars().take(200).filter(|c| !c.is_control()).collect()
}
