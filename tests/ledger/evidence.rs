//! How long evidence is kept: for ever, or for so many days; and what no age makes go.

use serde_json::Value;

use crate::support::check::World;
use crate::support::{Ebbtide, wait_until};
use crate::{ebbtide, said, told};

const GOLD: &str = "0x00000000000000000000000000000000000000aa";
const ALICE: &str = "0x00000000000000000000000000000000000000a1";

/// So many replaced blocks and reorganisations that were noted so long ago, below those that are there.
async fn noted(world: &World, count: u32, ago: &str) {
    world
        .sql(&format!(
            "insert into orphaned_blocks (chain_id, height, hash, parent_hash, transactions, token_events, events, replaced_at)
             select c.chain_id, n, 'x' || n, 'x', '[]', '[]', '[]', now() - interval '{ago}'
             from chains c, generate_series(1, {count}) n;
             insert into reorgs (chain_id, projection, depth, old_tip_height, old_tip_hash, blocks_undone, blocks_applied,
                 rows_touched, duration_ms, at)
             select c.chain_id, 'token_balances', 1, n, 'x', 1, 1, 1, 1, now() - interval '{ago}'
             from chains c, generate_series(1, {count}) n"
        ))
        .await;
}

/// Replaced blocks, reorganisations and refused events.
async fn kept(world: &World) -> String {
    let sql = "select concat_ws(' ', (select count(*) from orphaned_blocks), (select count(*) from reorgs),
                   (select count(*) from rejected_events))";
    world.one(sql).await.unwrap()
}

fn process(world: &World, args: &[&str]) {
    told(world, &[&["process", "--once"][..], args].concat());
}

/// 250 blocks and reorganisations of 40 days ago, 3 of 20 days ago, one of now; two refused events of 400 days ago.
async fn with_a_past() -> World {
    let world = World::new(64).await;
    world.sql("update chains set kind = 'evm'").await;
    noted(&world, 250, "40 days").await;
    noted(&world, 3, "20 days").await;
    let good = format!("{GOLD} - {ALICE} 5");
    world.put(1, "0x01", "0x00", &[&good, &format!("{GOLD} {ALICE} bob 2")]).await;
    world.put(2, "0x02", "0x01", &[&good]).await;
    process(&world, &[]);
    world.sql("select drop_blocks('main', 2)").await;
    world.put(2, "0x12", "0x01", &[&good]).await;
    process(&world, &[]);
    world
        .sql(
            "insert into rejected_events (chain_id, height, tx_index, event_index, projection, block_hash, raw, reason)
             select chain_id, 1, 9, 9, 'source', '0x01', '{}', 'no_party' from chains;
             update rejected_events set at = now() - interval '400 days'",
        )
        .await;
    world
}

#[tokio::test]
async fn evidence_goes_by_its_age_only_where_a_setting_says_so() {
    let world = with_a_past().await;
    assert_eq!(kept(&world).await, "254 254 2");
    process(&world, &[]);
    assert_eq!(kept(&world).await, "254 254 2", "without the setting all of it stays");
    process(&world, &["--keep-evidence-days", "30"]);
    assert_eq!(kept(&world).await, "4 4 2", "in as many steps as it takes; the young stay");
    process(&world, &["--keep-evidence-days", "10"]);
    assert_eq!(kept(&world).await, "1 1 2", "what was replaced just now stays");
    // A processor that goes on drops it beside its work.
    noted(&world, 120, "40 days").await;
    let args = ["process", "--keep-evidence-days", "30", "--database-url", &world.url];
    let mut running = Ebbtide::spawn(&args, &[]);
    running.wait_for_line(" reorganisations of more than 30 days ago").await;
    wait_until("the rest of it is dropped", async || (kept(&world).await == "1 1 2").then_some(())).await;
}

#[tokio::test]
async fn a_refused_event_has_no_age() {
    let world = with_a_past().await;
    process(&world, &["--keep-evidence-days", "1"]);
    assert_eq!(kept(&world).await, "1 1 2");
    // What the balances lack is still said, verified, and tried again.
    assert_eq!(world.one("select count(*) from anomalies where kind = 'rejected event'").await.unwrap(), "2");
    told(&world, &["verify"]);
    let text = told(&world, &["rejected", "list", "--projection", "source"]);
    assert!(text.contains("no_party"), "{text}");
    world.sql("update chains set kind = 'other'").await;
    told(&world, &["rejected", "retry", "--all"]);
    process(&world, &["--keep-evidence-days", "1"]);
    assert_eq!(world.balance(GOLD, "bob").await.as_deref(), Some("2"));
    assert_eq!(kept(&world).await.rsplit(' ').next(), Some("1"), "what was taken in is refused no more");
}

#[tokio::test]
async fn status_tells_what_evidence_takes() {
    let world = with_a_past().await;
    let output = ebbtide(&world, &["status", "--json"]);
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = all[0]["evidence_bytes"].as_f64().unwrap();
    assert!(bytes > 0.0);
    let told = said(&ebbtide(&world, &["status"]));
    let line = told.lines().last().unwrap();
    let size = format!("{:.1} kB.", bytes / 1024.0);
    assert_eq!(
        line,
        format!("Evidence of all chains (replaced blocks, reorganisations, refused events): {size}"),
        "{told}"
    );
}

#[tokio::test]
async fn what_is_kept_costs_nothing() {
    let world = World::new(64).await;
    noted(&world, 150, "40 days").await;
    noted(&world, 20_000, "1 day").await;
    world.sql("vacuum analyze orphaned_blocks, reorgs").await;
    let statement = include_str!("../../sql/queries/prune_evidence.sql").replace("$1", "30").replace("$2", "100");
    let sql = format!("explain (analyze, costs off, timing off, summary off) {statement}");
    for dropped in [100, 50, 0] {
        let plan: Vec<String> = world.db.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        let plan = plan.join("\n");
        let rows = plan.split("rows=").skip(1).map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap());
        let most = rows.map(|rows| rows.parse::<u64>().unwrap()).max();
        assert_eq!(most, Some(100), "it looks at the oldest alone, of which {dropped} go:\n{plan}");
        assert!(!plan.contains("Seq Scan on orphaned_blocks") && !plan.contains("Seq Scan on reorgs"), "{plan}");
    }
    assert_eq!(kept(&world).await, "20000 20000 0");
}
