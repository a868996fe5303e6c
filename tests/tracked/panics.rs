//! Code with a bug: its task ends, is told of and begins again; no other waits for it.

use std::sync::Arc;

use async_trait::async_trait;
use ebbtide::process::{Of, ProcessSettings, Projections, Watcher, run};
use ebbtide::projections::Projection;
use ebbtide::store::{BlockError, BlockTransaction, Store, StoreError, StoreSettings, Wake, WakeMode};
use tokio_util::sync::CancellationToken;

use crate::support::check::World;

/// Code that has a bug.
struct Panics;

#[async_trait]
impl Projection for Panics {
    fn name(&self) -> &str {
        "panics"
    }

    fn tables(&self) -> Vec<String> {
        vec!["public.panics".to_owned()]
    }

    async fn prepare(&self, store: &Store) -> Result<(), StoreError> {
        let sql = "create table if not exists public.panics (chain_id bigint primary key)";
        Ok(store.preparing().await?.batch_execute(sql).await?)
    }

    async fn apply(&self, block: &BlockTransaction<'_>) -> Result<(), BlockError> {
        panic!("a bug met {block:?}")
    }
}

struct Hears(tokio::sync::mpsc::UnboundedSender<String>);

impl Watcher for Hears {
    fn troubled(&self, _: Option<Of<'_>>, reason: &str) {
        self.0.send(reason.to_owned()).unwrap_or_default();
    }
}

#[tokio::test]
async fn a_task_that_panics_is_told_of_and_others_go_on() {
    let world = World::new(4).await;
    world.branch("a", 1, 3, "a0").await;
    let store = Store::open(&world.url, StoreSettings::default()).unwrap();
    let wake = Wake::start(&store, WakeMode::Listen);
    let settings = ProcessSettings { projections: Projections::default().with(Panics), ..ProcessSettings::default() };
    let (hears, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(store, settings, wake, Arc::new(Hears(hears)), stop.clone()));
    let reason = tokio::time::timeout(crate::support::PATIENCE, heard.recv()).await.unwrap().unwrap();
    assert!(reason.contains("panicked") && reason.contains("a bug met block"), "{reason}");
    world.branch("a", 4, 5, "a3").await;
    world.check_soon().await;
    stop.cancel();
    // At its end too.
    let ended = running.await.unwrap();
    assert!(ended.is_ok() || ended.unwrap_err().to_string().contains("panicked"));
}
