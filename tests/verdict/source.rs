//! Ways in which a source or its syncer is not well.

use std::time::Duration;

use crate::support::fake_node::read::lively;
use crate::support::fake_node::{FakeNode, Fault};
use crate::support::{Ebbtide, holds_within, wait_until};
use crate::{Must, Stage, Way, of_status, way};

const SOURCE: Must<'static> = Must { part: "source", state: "", why: "", remedy: None };

/// A node, a syncer and a processor, in step.
struct Followed {
    stage: Stage,
    node: FakeNode,
    sync: Ebbtide,
    _process: Ebbtide,
}

impl Followed {
    async fn start(args: &[&str]) -> Followed {
        let stage = Stage::empty().await;
        let node = FakeNode::start(1, lively(12, "a")).await;
        let sync = sync(&stage, &node, args);
        let process = stage.process(&[]);
        wait_until("the head is stored", async || {
            (stage.one("select max(height) from blocks").await == "11").then_some(())
        })
        .await;
        stage.is_well().await;
        Followed { stage, node, sync, _process: process }
    }
}

fn sync(stage: &Stage, node: &FakeNode, args: &[&str]) -> Ebbtide {
    let url = node.url();
    let all = ["sync", "--source", "evm", "--url", &url, "--start-height", "0", "--database-url", &stage.pg.url];
    let args = [&all[..], &["--source-poll-ms", "50"], args].concat();
    Ebbtide::spawn(&args, &[("EBBTIDE_CHAINS__MAIN__REQUEST_TIMEOUT_MS", "20000")])
}

/// A node that misbehaves in one way, until it does not.
fn fault(name: &'static str, fault: Fault, state: &'static str, why: &'static str) -> Way {
    way(name, async move {
        let followed = Followed::start(&[]).await;
        followed.node.fault(fault);
        let remedy = if state == "failing" { "fix the cause" } else { "see to the node" };
        followed.stage.agree(Must { state, why, remedy: Some(remedy), ..SOURCE }).await;
        followed.node.heal();
        followed.stage.is_well().await;
    })
}

pub fn ways() -> Vec<Way> {
    vec![
        fault("a dead node", Fault::DropSocket, "waiting", "request"),
        fault("a node that never answers", Fault::Hang, "waiting", "has not answered for"),
        fault("a node that is overloaded", Fault::Http(503, "busy"), "waiting", "503"),
        fault("a node that refuses the key", Fault::Http(401, "no such key"), "failing", "401"),
        fault("a node that answers a page", Fault::Body("<html>maintenance</html>"), "failing", "web page"),
        fault("a node that limits the rate", Fault::RetryAfter(1), "waiting", ""),
        fault("a node that answers null", Fault::NullAnswers, "waiting", ""),
        fault("a node that answers errors", Fault::Refused(-32603, "internal error"), "waiting", "internal error"),
        way("a node that was dead for long, and is back", async {
            let followed = Followed::start(&[]).await;
            followed.node.fault(Fault::DropSocket);
            let status = async || of_status(&followed.stage.status(&["--json"]).await.1, "source");
            let dead = wait_until("it has been dead for so long that the pauses are the longest", async || {
                Some(status().await).filter(|source| source["for_seconds"].as_f64() > Some(18.0))
            })
            .await;
            assert_eq!(dead["state"], "waiting", "{dead}");
            followed.node.set_chain_quietly(lively(14, "a"));
            followed.node.heal();
            let stored = async || match &*followed.stage.one("select max(height) from blocks").await {
                "13" => Vec::new(),
                other => vec![format!("the newest block is {other}")],
            };
            holds_within(Duration::from_secs(10), "blocks go on", stored).await;
            followed.stage.is_well().await;
        }),
        way("a node that names a block that it does not have", async {
            let followed = Followed::start(&[]).await;
            followed.node.set_chain(lively(14, "a"));
            followed.node.fault(Fault::MissingBlock(12));
            followed.stage.agree(Must { state: "waiting", why: "", remedy: Some("node"), ..SOURCE }).await;
            followed.node.heal();
            followed.stage.is_well().await;
        }),
        way("a node that replaces final blocks", async {
            let mut followed = Followed::start(&["--finality-depth", "3"]).await;
            followed.node.set_chain(lively(15, "b"));
            followed
                .stage
                .agree(Must { state: "failing", why: "--allow-reset", remedy: Some("fix the cause"), ..SOURCE })
                .await;
            followed.sync.terminate();
            followed.sync.wait(Duration::from_secs(10)).await;
            followed.sync = sync(&followed.stage, &followed.node, &["--finality-depth", "3", "--allow-reset"]);
            followed.stage.is_well().await;
        }),
        way("a syncer that was killed", async {
            let mut followed = Followed::start(&[]).await;
            followed.sync.kill();
            let why = "its syncer has given no sign of life";
            followed.stage.agree(Must { state: "silent", why, remedy: Some("`ebbtide sync`"), ..SOURCE }).await;
            followed.sync = sync(&followed.stage, &followed.node, &[]);
            followed.stage.is_well().await;
        }),
        way("a syncer that is frozen", async {
            let followed = Followed::start(&[]).await;
            followed.sync.freeze();
            let why = "its syncer has given no sign of life";
            followed.stage.agree(Must { state: "silent", why, remedy: Some("`ebbtide sync`"), ..SOURCE }).await;
            followed.sync.thaw();
            followed.stage.is_well().await;
        }),
        way("a second syncer beside a frozen one", async {
            let followed = Followed::start(&[]).await;
            followed.sync.freeze();
            let _second = sync(&followed.stage, &followed.node, &[]);
            followed.stage.agree(Must { state: "waiting", why: "stands by", remedy: Some("frozen"), ..SOURCE }).await;
            followed.sync.thaw();
            followed.stage.is_well().await;
        }),
        way("a syncer that was stopped", async {
            let mut followed = Followed::start(&[]).await;
            followed.sync.terminate();
            assert!(followed.sync.wait(Duration::from_secs(10)).await.success());
            followed
                .stage
                .agree(Must { state: "silent", why: "was stopped", remedy: Some("`ebbtide sync`"), ..SOURCE })
                .await;
            followed.sync = sync(&followed.stage, &followed.node, &[]);
            followed.stage.is_well().await;
        }),
        way("a chain that once had a source", async {
            let stage = Stage::written().await;
            stage.branch("a", 1, 2, "a0").await;
            let _process = stage.process(&[]);
            stage.is_well().await;
            stage.sql("update chains set head_height = 2").await;
            let remedy = "update ebbtide.chains set head_height = null where name = 'main'";
            let must =
                Must { state: "silent", why: "no syncer has told that it is alive", remedy: Some(remedy), ..SOURCE };
            stage.agree(must).await;
            stage.sql(remedy).await;
            stage.is_well().await;
        }),
    ]
}
