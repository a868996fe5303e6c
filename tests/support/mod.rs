//! What the tests share: databases, processes, faults, recorded data.
//!
//! `make test` runs everything beside one throwaway Postgres and names it in `TEST_DATABASE_URL`; each test gets a
//! database of its own in it, cloned from a migrated template.
#![allow(dead_code, unused_imports, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::print_stdout)]

pub mod anvil;
pub mod check;
pub mod fake_indexer;
pub mod fake_node;
pub mod fake_starknet;
pub mod http;
pub mod model;
pub mod own_pg;
pub mod pg;
pub mod pooler;
pub mod process;
pub mod proxy;
pub mod recorded;
pub mod rpc_node;
pub mod story;
pub mod vault_tables;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

pub use anvil::Anvil;
pub use own_pg::OwnPg;
pub use pg::Pg;
pub use pooler::{Neighbour, Pooler};
pub use process::Ebbtide;
pub use proxy::{Fault, FaultProxy};
pub use recorded::{data_dir, ndjson_gz, read_ndjson_gz, skip};

/// How long a wait may last before the test fails. Generous: it is only ever reached by a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks `look` until nothing is amiss; fails after `deadline` with what was amiss last.
pub async fn holds_within(deadline: Duration, what: &str, mut look: impl AsyncFnMut() -> Vec<String>) {
    let begun = Instant::now();
    loop {
        let amiss = look().await;
        if amiss.is_empty() {
            return;
        }
        assert!(begun.elapsed() < deadline, "{what}, within {deadline:?}; but:\n{}", amiss.join("\n"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Asks `look` until it returns something; fails after [`PATIENCE`], naming what was waited for.
pub async fn wait_until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, look).await
}

/// [`wait_until`] with a deadline of its own.
pub async fn wait_within<T>(deadline: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(begun.elapsed() < deadline, "waited {deadline:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A loopback port that was free a moment ago, and that the kernel gives to no outgoing connection: it hands out those from
/// 32,768 on (macOS: 49,152), and the tests make thousands while a program that ends and starts again has left its own.
pub fn free_port() -> u16 {
    std::iter::repeat_with(|| rand::random_range(20_000..32_768))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .unwrap()
}

/// [`free_port`] as an address.
pub fn free_addr() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}
