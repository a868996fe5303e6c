//! The built program, following a script that the test writes as it goes.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use crate::support::process::ebbtide_command;
use crate::support::{Ebbtide, Pg, wait_until};

/// Amounts in decimal, by token and address.
pub type Amounts = BTreeMap<(String, String), String>;

/// `ebbtide run --source file --file -` on a database of its own; the test holds the other end of its input.
pub struct Live {
    pub pg: Pg,
    pub db: Client,
    ebbtide: Ebbtide,
    script: Option<ChildStdin>,
}

impl Live {
    /// Starts it with these further arguments.
    pub async fn start(args: &[&str]) -> Live {
        let pg = Pg::new().await;
        let db = pg.client().await;
        let mut command = ebbtide_command(&["run", "--source", "file", "--file", "-", "--database-url", &pg.url], &[]);
        command.args(["--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0"]).args(args);
        command.stdin(Stdio::piped());
        let mut ebbtide = Ebbtide::spawn_command(command);
        let script = Some(ebbtide.stdin());
        Live { pg, db, ebbtide, script }
    }

    /// Tells it these lines, all at once.
    pub fn tell<'a>(&mut self, lines: impl IntoIterator<Item = &'a Value>) {
        let mut text = String::new();
        for line in lines {
            text.push_str(&line.to_string());
            text.push('\n');
        }
        self.script.as_mut().expect("not at its end").write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the balances are those after this block.
    pub async fn reach(&self, height: u64, hash: &str) {
        reach(&self.db, "main", height, hash).await;
    }

    /// Ends the script and the program, which must end well.
    pub async fn end(mut self) -> Pg {
        drop(self.script.take());
        self.ebbtide.terminate();
        let status = self.ebbtide.wait(Duration::from_secs(15)).await;
        assert!(status.success(), "{status}:\n{}", self.ebbtide.stderr().join("\n"));
        self.pg
    }
}

/// Waits until this chain's balances are those after this block.
pub async fn reach(db: &Client, chain: &str, height: u64, hash: &str) {
    let at = height.cast_signed();
    let what = format!("chain {chain} stands at block {height} ({hash})");
    wait_until(&what, async || {
        let row = db
            .query_one(
                "select count(*) filter (where k.height = $2 and k.hash = $3), max(k.halted_reason)
                 from checkpoints k join chains c using (chain_id)
                 where c.name = $1 and k.projection = 'token_balances'",
                &[&chain, &at, &hash],
            )
            .await
            .unwrap();
        let halted: Option<String> = row.get(1);
        assert_eq!(halted, None, "{what}");
        (row.get::<_, i64>(0) == 1).then_some(())
    })
    .await;
}

/// Every account of a chain with its balance, and the hash of the block they are right at: one snapshot.
pub async fn standing(db: &Client, chain: &str) -> (String, Amounts) {
    let rows = db
        .query(
            "select k.hash, b.token, b.address, b.amount::text
             from checkpoints k join chains c using (chain_id) left join balances b using (chain_id)
             where c.name = $1 and k.projection = 'token_balances'",
            &[&chain],
        )
        .await
        .unwrap();
    let hash = rows[0].get::<_, Option<String>>(0).unwrap_or_default();
    let named = rows.iter().filter_map(|row| Some(((row.get::<_, Option<_>>(1)?, row.get(2)), row.get(3))));
    (hash, named.collect())
}

/// Every account of a chain as it stood once the block at this height was applied, by the SQL function.
pub async fn standing_at(db: &Client, chain: &str, height: u64) -> Amounts {
    let sql = "select token, address, amount::text from balances_at($1, $2)";
    let rows = db.query(sql, &[&chain, &height.cast_signed()]).await.unwrap();
    rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
}

/// Those that are not 0.
pub fn without_zeros(amounts: Amounts) -> Amounts {
    amounts.into_iter().filter(|(_, amount)| amount != "0").collect()
}

/// Fails with the first differences, not with two maps of thousands.
pub fn assert_same(ours: &Amounts, theirs: &Amounts, where_: &str) {
    if ours == theirs {
        return;
    }
    let mut differences = Vec::new();
    for key in ours.keys().chain(theirs.keys()) {
        let (a, b) = (ours.get(key), theirs.get(key));
        if a != b && differences.len() < 10 {
            differences.push(format!("{} of {}: ours {a:?}, should be {b:?}", key.1, key.0));
        }
    }
    panic!("{where_}:\n{}", differences.join("\n"));
}

/// Nothing was refused, nothing is negative, broken or halted.
pub async fn assert_untroubled(db: &Client) {
    let sql = "select kind || ': ' || detail from anomalies limit 5";
    let found: Vec<String> = db.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(found, [] as [String; 0]);
}

/// Nothing was refused.
pub async fn assert_nothing_rejected(db: &Client) {
    let sql = "select reason || ': ' || raw from rejected_events limit 5";
    let found: Vec<String> = db.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(found, [] as [String; 0]);
}

/// An opening balance as a line of the script.
pub fn opening(token: &str, address: &str, amount: &str) -> Value {
    serde_json::json!({"event": "opening_balance", "token": token, "address": address, "amount": amount})
}
