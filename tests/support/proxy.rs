//! A TCP proxy in front of Postgres that fails where it is told to.
//!
//! It reads the frames of the protocol (Postgres documentation, "Message Formats") well enough to count what a
//! client asks, so that a test can cut or hold a connection at every single statement boundary.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens at the chosen message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection is cut and the message never reaches the server.
    CutBefore,
    /// The message is held; nothing moves on this connection until [`FaultProxy::release`], or until the client is
    /// gone (then the server never sees the message).
    FreezeBefore,
    /// The server does what it was asked (up to the end of the pipeline that holds the message), but the client
    /// never hears the answer: the connection is cut instead.
    CutAfterAnswer,
}

/// Runs until dropped; each connection made to it becomes one to the server.
pub struct FaultProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Counted {
    /// Every counted message that was let through or faulted.
    messages: Vec<String>,
    /// For each of them: in which of the client's writes it came.
    writes: Vec<u64>,
    armed: Option<Armed>,
}

struct Armed {
    /// Messages still to pass before the fault.
    passes: u64,
    fault: Fault,
    /// Counts only connections whose application name holds this.
    application: String,
}

struct Shared {
    server: SocketAddr,
    counted: Mutex<Counted>,
    /// How often a fault fired.
    fired: watch::Sender<u64>,
    /// How often frozen connections were released.
    released: watch::Sender<u64>,
    /// How often all connections were cut, and whether new ones are let in.
    cut: watch::Sender<u64>,
    open: watch::Sender<bool>,
}

impl FaultProxy {
    /// A proxy in front of `server`, on a port of its own.
    pub async fn start(server: SocketAddr) -> FaultProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server,
            counted: Mutex::default(),
            fired: watch::Sender::new(0),
            released: watch::Sender::new(0),
            cut: watch::Sender::new(0),
            open: watch::Sender::new(true),
        });
        let for_connections = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            // Owned by this task: when it is aborted all connections end with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(carry(client, Arc::clone(&for_connections)));
            }
        });
        FaultProxy { addr, shared, accepting }
    }

    /// [`start`](FaultProxy::start) in front of the server that `url` names (over TCP).
    pub async fn in_front_of(url: &str) -> FaultProxy {
        let config: tokio_postgres::Config = url.parse().unwrap();
        let tokio_postgres::config::Host::Tcp(host) = &config.get_hosts()[0] else {
            panic!("needs a server on a TCP port")
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        FaultProxy::start(tokio::net::lookup_host((host.as_str(), port)).await.unwrap().next().unwrap()).await
    }

    /// The same database as `url`, reached through the proxy.
    pub fn url(&self, url: &str) -> String {
        super::pg::through(url, self.addr)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Messages counted so far: `Query`, `Parse`, `Bind`, `Execute`, `Sync` and `CopyDone`, as `Parse select 1`.
    pub fn messages(&self) -> Vec<String> {
        self.shared.counted.lock().unwrap().messages.clone()
    }

    /// For each of [`messages`](FaultProxy::messages), the number of the write that it came in: what a client sends without
    /// waiting for an answer comes in one.
    pub fn writes(&self) -> Vec<u64> {
        self.shared.counted.lock().unwrap().writes.clone()
    }

    /// Number of [`messages`](FaultProxy::messages).
    pub fn count(&self) -> u64 {
        self.shared.counted.lock().unwrap().messages.len() as u64
    }

    /// Fails once, at the `nth` counted message from now (1: the next).
    pub fn arm(&self, nth: u64, fault: Fault) {
        self.arm_for("", nth, fault);
    }

    /// [`arm`](FaultProxy::arm), counting only connections whose application name holds `application`.
    pub fn arm_for(&self, application: &str, nth: u64, fault: Fault) {
        let passes = nth.checked_sub(1).expect("messages count from 1");
        self.shared.counted.lock().unwrap().armed = Some(Armed { passes, fault, application: application.to_owned() });
    }

    /// Lets everything pass again.
    pub fn disarm(&self) {
        self.shared.counted.lock().unwrap().armed = None;
    }

    /// How often a fault has fired.
    pub fn fired(&self) -> u64 {
        *self.shared.fired.borrow()
    }

    /// Waits until `times` faults have fired in all.
    pub async fn wait_fired(&self, times: u64) {
        let mut fired = self.shared.fired.subscribe();
        let waiting = fired.wait_for(|fired| *fired >= times);
        tokio::time::timeout(super::PATIENCE, waiting).await.expect("the fault fires").unwrap();
    }

    /// Lets frozen connections go on, the held message first.
    pub fn release(&self) {
        self.shared.released.send_modify(|n| *n += 1);
    }

    /// Cuts every connection, frozen ones too.
    pub fn cut_all(&self) {
        self.shared.cut.send_modify(|n| *n += 1);
    }

    /// Cuts every connection and refuses new ones, as a network that went away.
    pub fn shut(&self) {
        self.shared.open.send_replace(false);
        self.cut_all();
    }

    /// Lets new connections in again.
    pub fn reopen(&self) {
        self.shared.open.send_replace(true);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One frame: its type (none before and in the startup message) and the whole of its bytes.
struct Frame {
    kind: Option<u8>,
    bytes: Vec<u8>,
}

impl Frame {
    fn body(&self) -> &[u8] {
        &self.bytes[self.kind.map_or(4, |_| 5)..]
    }

    /// How a counted message reads in the list; none for the others.
    fn counted(&self) -> Option<String> {
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        Some(match self.kind? {
            b'Q' => format!("Query {}", text(self.body())),
            // The statement's name, a NUL, its text.
            b'P' => format!("Parse {}", text(self.body().splitn(2, |b| *b == 0).nth(1).unwrap_or_default())),
            b'B' => "Bind".to_owned(),
            b'E' => "Execute".to_owned(),
            b'S' => "Sync".to_owned(),
            b'c' => "CopyDone".to_owned(),
            _ => return None,
        })
    }
}

/// One side's bytes as they come in.
struct Inbox {
    half: OwnedReadHalf,
    buffer: Vec<u8>,
    /// How often bytes came.
    fills: u64,
}

impl Inbox {
    /// Takes in more bytes; none at the end of the connection.
    async fn fill(&mut self) -> Option<()> {
        self.buffer.reserve(1 << 16);
        self.fills += 1;
        (self.half.read_buf(&mut self.buffer).await.ok()? > 0).then_some(())
    }

    async fn frame(&mut self, tagged: bool) -> Option<Frame> {
        let head = usize::from(tagged);
        loop {
            if let Some(length) = self.buffer.get(head..head + 4) {
                let length = u32::from_be_bytes(length.try_into().ok()?);
                let end = head + usize::try_from(length).ok()?;
                if self.buffer.len() >= end {
                    let rest = self.buffer.split_off(end);
                    let bytes = std::mem::replace(&mut self.buffer, rest);
                    return Some(Frame { kind: tagged.then(|| bytes[0]), bytes });
                }
            }
            self.fill().await?;
        }
    }

    /// Returns once the other side has hung up; what it sent before that is kept.
    async fn gone(&mut self) {
        while self.fill().await.is_some() {}
    }
}

/// What one connection still owes the client: how many `ReadyForQuery` the server will send.
#[derive(Default)]
struct Answers {
    expected: u64,
    seen: u64,
    /// The last client message was an `Execute`; its `Sync` has not been carried yet.
    execute_is_last: bool,
    sync_is_last: bool,
    /// The server takes in a COPY and will ignore the next `Sync`.
    ignores_next_sync: bool,
    /// Cut once every expected answer has come; the last one is swallowed.
    doomed: bool,
}

impl Answers {
    fn client_sent(&mut self, kind: u8) {
        match kind {
            b'S' if std::mem::take(&mut self.ignores_next_sync) => {}
            b'S' | b'Q' => self.expected += 1,
            _ => {}
        }
        // Clients may describe or flush between them.
        if !matches!(kind, b'D' | b'H') {
            self.execute_is_last = kind == b'E';
            self.sync_is_last = kind == b'S';
        }
    }

    fn server_sent(&mut self, kind: u8) {
        match kind {
            b'Z' => self.seen += 1,
            // During COPY the server ignores the Sync that the client sent along with its Execute.
            b'G' if self.sync_is_last => self.expected -= 1,
            b'G' if self.execute_is_last => self.ignores_next_sync = true,
            _ => {}
        }
    }
}

/// Carries one connection until either side, or a fault, ends it; both sockets close when this returns.
async fn carry(client: TcpStream, shared: Arc<Shared>) {
    let mut cut = shared.cut.subscribe();
    cut.mark_unchanged();
    if !*shared.open.borrow() {
        return;
    }
    let Ok(server) = TcpStream::connect(shared.server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_in, mut client_out) = client.into_split();
    let (server_in, mut server_out) = server.into_split();
    let mut client_in = Inbox { half: client_in, buffer: Vec::new(), fills: 0 };
    let mut server_in = Inbox { half: server_in, buffer: Vec::new(), fills: 0 };
    let Some(application) = carry_startup(&mut client_in, &mut client_out, &mut server_in, &mut server_out).await
    else {
        return;
    };
    // The end of the authentication is a ReadyForQuery too.
    let answers = Mutex::new(Answers { expected: 1, ..Answers::default() });
    let frozen = watch::Sender::new(false);
    tokio::select! {
        () = carry_questions(&mut client_in, &mut server_out, &shared, &application, &answers, &frozen) => {}
        () = carry_answers(&mut server_in, &mut client_out, &answers, &frozen) => {}
        _ = cut.changed() => {}
    }
}

/// Carries what comes before the tagged messages; returns the application's name.
async fn carry_startup(
    client_in: &mut Inbox,
    client_out: &mut OwnedWriteHalf,
    server_in: &mut Inbox,
    server_out: &mut OwnedWriteHalf,
) -> Option<String> {
    const SSL_REQUEST: u32 = 80_877_103;
    const GSS_REQUEST: u32 = 80_877_104;
    loop {
        let frame = client_in.frame(false).await?;
        server_out.write_all(&frame.bytes).await.ok()?;
        let code = u32::from_be_bytes(frame.body().get(..4)?.try_into().ok()?);
        if code != SSL_REQUEST && code != GSS_REQUEST {
            let words: Vec<&[u8]> = frame.body()[4..].split(|b| *b == 0).collect();
            let name = words.chunks(2).find(|pair| pair[0] == b"application_name").and_then(|pair| pair.get(1));
            return Some(String::from_utf8_lossy(name.copied().unwrap_or_default()).into_owned());
        }
        server_in.fill().await?;
        assert_eq!(server_in.buffer, b"N", "the proxy cannot look into an encrypted connection");
        client_out.write_all(&std::mem::take(&mut server_in.buffer)).await.ok()?;
    }
}

async fn carry_questions(
    client: &mut Inbox,
    server: &mut OwnedWriteHalf,
    shared: &Shared,
    application: &str,
    answers: &Mutex<Answers>,
    frozen: &watch::Sender<bool>,
) {
    while let Some(frame) = client.frame(true).await {
        match shared.count(&frame, client.fills, application) {
            Some(Fault::CutBefore) => {
                shared.fired.send_modify(|n| *n += 1);
                return;
            }
            Some(Fault::FreezeBefore) => {
                let mut released = shared.released.subscribe();
                frozen.send_replace(true);
                shared.fired.send_modify(|n| *n += 1);
                tokio::select! {
                    _ = released.changed() => {}
                    () = client.gone() => return,
                }
                frozen.send_replace(false);
            }
            Some(Fault::CutAfterAnswer) => answers.lock().unwrap().doomed = true,
            None => {}
        }
        let kind = frame.kind.unwrap_or_default();
        answers.lock().unwrap().client_sent(kind);
        if server.write_all(&frame.bytes).await.is_err() {
            return;
        }
        if answers.lock().unwrap().doomed && matches!(kind, b'Q' | b'S') {
            // carry_answers ends the connection; more questions must not move the end.
            wait_for_the_last_answer(answers).await;
            shared.fired.send_modify(|n| *n += 1);
            return;
        }
    }
}

async fn wait_for_the_last_answer(answers: &Mutex<Answers>) {
    loop {
        {
            let answers = answers.lock().unwrap();
            if answers.seen >= answers.expected {
                return;
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

async fn carry_answers(
    server: &mut Inbox,
    client: &mut OwnedWriteHalf,
    answers: &Mutex<Answers>,
    frozen: &watch::Sender<bool>,
) {
    let mut frozen = frozen.subscribe();
    while let Some(frame) = server.frame(true).await {
        let (doomed, all_but_one) = {
            let mut answers = answers.lock().unwrap();
            let all_but_one = answers.seen + 1 >= answers.expected;
            answers.server_sent(frame.kind.unwrap_or_default());
            (answers.doomed, all_but_one)
        };
        if frozen.wait_for(|frozen| !frozen).await.is_err() {
            return;
        }
        if doomed && all_but_one {
            // Swallowed. The connection ends when carry_questions has seen the last answer arrive.
            continue;
        }
        if client.write_all(&frame.bytes).await.is_err() {
            return;
        }
    }
}

impl Shared {
    /// Counts a message and says whether it is the one.
    fn count(&self, frame: &Frame, write: u64, application: &str) -> Option<Fault> {
        // A heart's messages come by the clock: counted, they would put another message in each place every time.
        if application == "ebbtide heart" {
            return None;
        }
        let message = frame.counted()?;
        let mut counted = self.counted.lock().unwrap();
        counted.messages.push(message);
        counted.writes.push(write);
        let armed = counted.armed.as_mut().filter(|armed| application.contains(&armed.application))?;
        if armed.passes > 0 {
            armed.passes -= 1;
            return None;
        }
        counted.armed.take().map(|armed| armed.fault)
    }
}
