//! Reads by REST beside bare selects for the same rows, both by as many clients, each over a connection of its own.

use std::net::SocketAddr;
use std::time::Instant;

use ebbtide::api::{ApiSettings, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::Size;
use crate::report::{Budget, Line};
use crate::server::{Database, Server, connect};

const CLIENTS: u64 = 64;
/// Tokens of which every account has had some.
const TOKENS: u64 = 10;
/// Tokens that one more account has, and nobody else.
const OTHER_TOKENS: u64 = 10_000;
/// Changes of each balance.
const CHANGES: u64 = 3;

/// What a client asks for again and again.
#[derive(Clone, Copy)]
enum Read {
    Balance,
    Account,
    Holders,
    Totals,
}

impl Read {
    fn path(self, account: u64) -> String {
        let (token, address) = (hex(account % TOKENS), hex(account));
        match self {
            Read::Balance => format!("/tokens/{token}/balances?address={address}"),
            Read::Account => format!("/tokens/balances?address={address}"),
            Read::Holders => format!("/tokens/{token}/balances"),
            Read::Totals => "/tokens/balances".to_owned(),
        }
    }

    /// For the chain $1, the account $2 and the tokens $3, of which a single one counts where one is asked for.
    fn sql(self) -> &'static str {
        match self {
            Read::Balance => {
                "select address, amount::text from balances where chain_id = $1 and token = ($3::text[])[1] and address = $2"
            }
            Read::Account => {
                "select b.token, b.amount::text from unnest($3::text[]) t(token) \
                 join balances b on b.chain_id = $1 and b.token = t.token and b.address = $2"
            }
            Read::Totals => {
                "select token, total::text from token_totals \
                 where chain_id = $1 and token > left(coalesce(($3::text[])[1], $2), 0) order by token limit 1001"
            }
            Read::Holders => {
                "select address, amount::text from balances \
                 where chain_id = $1 and token = ($3::text[])[1] and address > left($2, 0) order by address limit 1001"
            }
        }
    }

    fn tokens(self, account: u64) -> Vec<String> {
        match self {
            Read::Account => (0..TOKENS).map(hex).collect(),
            Read::Totals => Vec::new(),
            Read::Balance | Read::Holders => vec![hex(account % TOKENS)],
        }
    }

    /// Rows of an answer.
    fn rows(self, accounts: u64) -> usize {
        match self {
            Read::Balance => 1,
            Read::Account => TOKENS as usize,
            Read::Holders => accounts.min(1001) as usize,
            Read::Totals => (TOKENS + OTHER_TOKENS).min(1001) as usize,
        }
    }
}

fn hex(number: u64) -> String {
    format!("0x{number:040x}")
}

pub(crate) async fn reads(server: &Server, size: &Size) -> Vec<Line> {
    let budget = Budget::Ratio(0.4, 0.6);
    let mut lines = [
        (Read::Balance, Line::new("rest: one balance, 64 clients", "reads/s", budget), size.of(40_000, 640)),
        (
            Read::Account,
            Line::new("rest: an account of 10 tokens among 10,010, 64 clients", "reads/s", budget),
            size.of(20_000, 640),
        ),
        (Read::Holders, Line::new("rest: a thousand holders, 64 clients", "reads/s", budget), size.of(4_000, 320)),
        (
            Read::Totals,
            Line::new("rest: totals of a thousand tokens, 64 clients", "reads/s", budget),
            size.of(4_000, 320),
        ),
    ];
    let database = server.database().await;
    let accounts = size.of(100_000, 100);
    fill(&database, accounts).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(serve(listener, database.store.clone(), ApiSettings::default(), std::future::pending()));
    for _ in 0..size.rounds {
        for (read, line, count) in &mut lines {
            line.product.push(by_rest(address, *read, accounts, *count).await);
            line.floor.push(by_select(&database, *read, accounts, *count).await);
        }
    }
    serving.abort();
    server.drop(database).await;
    lines.into_iter().map(|(_, line, _)| line).collect()
}

/// What the processor leaves behind after three blocks that gave every account some of every token.
async fn fill(database: &Database, accounts: u64) {
    let chain = database.chain.0;
    let text = format!(
        "set ebbtide.bulk = 'on';
        set ebbtide.write_tracked_tables = on;
        insert into blocks (chain_id, height, hash, parent_hash)
        select {chain}, h, '0x' || h, '0x' || h - 1 from generate_series(1, {CHANGES}) h;
        insert into balances (chain_id, token, address, amount, height, prev_height)
        select {chain}, '0x' || lpad(to_hex(t), 40, '0'), '0x' || lpad(to_hex(a), 40, '0'), a * 1e12 + 1, {CHANGES},
            {CHANGES} - 1
        from generate_series(0, {TOKENS} - 1) t, generate_series(0, {accounts} - 1) a
        union all
        select {chain}, '0x' || lpad(to_hex(t), 40, '0'), '0x' || lpad(to_hex({accounts}), 40, '0'), t, {CHANGES}, {CHANGES} - 1
        from generate_series({TOKENS}, {TOKENS} + {OTHER_TOKENS} - 1) t;
        insert into token_totals select chain_id, token, sum(amount) from balances group by chain_id, token;
        insert into balance_history (balance_id, chain_id, height, delta, balance_after, prev_height)
        select balance_id, chain_id, h, 1, amount - {CHANGES} + h, nullif(h - 1, 0)
        from balances, generate_series(1, {CHANGES}) h order by balance_id, h;
        insert into applied_blocks (chain_id, projection, height, hash, revision)
        select chain_id, 'token_balances', height, hash, revision from blocks;
        insert into checkpoints (chain_id, projection, height, hash, through_height)
        values ({chain}, 'token_balances', {CHANGES}, '0x{CHANGES}', {CHANGES});
        set ebbtide.bulk = 'off'"
    );
    database.client.batch_execute(&text).await.unwrap();
    database.client.batch_execute("vacuum analyze").await.unwrap();
    database.settle().await;
}

/// Reads a second of all clients; `count` of them, each for another account.
async fn by_rest(address: SocketAddr, read: Read, accounts: u64, count: u64) -> f64 {
    let mut clients = JoinSet::new();
    // Connected, and warm, before the clock starts.
    let mut streams = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        ask(&mut stream, &read.path(0), read.rows(accounts)).await;
        streams.push(stream);
    }
    let begun = Instant::now();
    for (client, mut stream) in (0..CLIENTS).zip(streams) {
        clients.spawn(async move {
            for n in 0..count / CLIENTS {
                let account = (client * 7_919 + n * 104_729) % accounts;
                ask(&mut stream, &read.path(account), read.rows(accounts)).await;
            }
        });
    }
    clients.join_all().await;
    count as f64 / begun.elapsed().as_secs_f64()
}

/// One request and its answer, which must have so many rows (a page has a thousand at most).
async fn ask(stream: &mut TcpStream, path: &str, rows: usize) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut bytes = Vec::with_capacity(1 << 18);
    let whole = loop {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "{}", String::from_utf8_lossy(&bytes));
        if let Some(whole) = length(&bytes) {
            break whole;
        }
    };
    while bytes.len() < whole {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
    }
    let text = std::str::from_utf8(&bytes).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("\r\nx-block-height: 3\r\n"), "{path}: {text}");
    assert_eq!(text.matches("\"amount\"").count(), rows.min(1000), "{path}");
}

/// How long head and body are together, once the head is there.
fn length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&bytes[..head]).unwrap();
    let size = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    Some(head + 4 + size.parse::<usize>().unwrap())
}

async fn by_select(database: &Database, read: Read, accounts: u64, count: u64) -> f64 {
    let mut sessions = Vec::new();
    for _ in 0..CLIENTS {
        let client = connect(&database.url).await;
        client.batch_execute("set search_path = ebbtide; set jit = off").await.unwrap();
        let statement = client.prepare(read.sql()).await.unwrap();
        sessions.push((client, statement));
    }
    let chain = database.chain.0;
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for (number, (client, statement)) in (0..CLIENTS).zip(sessions) {
        clients.spawn(async move {
            for n in 0..count / CLIENTS {
                let account = (number * 7_919 + n * 104_729) % accounts;
                let found = client.query(&statement, &[&chain, &hex(account), &read.tokens(account)]).await.unwrap();
                assert_eq!(found.len(), read.rows(accounts));
                let texts = found.iter().map(|row| (row.get::<_, String>(0), row.get::<_, String>(1)));
                std::hint::black_box(texts.collect::<Vec<_>>());
            }
        });
    }
    clients.join_all().await;
    count as f64 / begun.elapsed().as_secs_f64()
}
