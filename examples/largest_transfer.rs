//! A projection in Rust: the largest transfer of each token so far, in a table of its own.
//!
//! `cargo run --example largest_transfer -- postgres://localhost/mydb` beside `ebbtide run`, or any other syncer, keeps
//! `public.largest_transfer` right through every reorganisation. With a second argument, `once`, it ends when there is
//! nothing left to do.

use std::sync::Arc;

use async_trait::async_trait;
use ebbtide::chain::verdict::Ended;
use ebbtide::heart::Heart;
use ebbtide::ops::{Health, Metrics};
use ebbtide::process::{self, ProcessSettings, Projections};
use ebbtide::projections::Projection;
use ebbtide::store::numeric::Numeric;
use ebbtide::store::{BlockError, BlockTransaction, Store, StoreError, StoreSettings, Wake, WakeMode};
use ebbtide::watch::{ProcessWatch, Voices};
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

struct LargestTransfer;

#[async_trait]
impl Projection for LargestTransfer {
    fn name(&self) -> &str {
        "largest_transfer"
    }

    fn tables(&self) -> Vec<String> {
        vec!["public.largest_transfer".to_owned()]
    }

    async fn prepare(&self, store: &Store) -> Result<(), StoreError> {
        let client = store.preparing().await?;
        client
            .batch_execute(
                "create table if not exists public.largest_transfer (
                    chain_id bigint, token text, height bigint not null, sender text not null, amount numeric not null,
                    primary key (chain_id, token))",
            )
            .await?;
        Ok(())
    }

    async fn apply(&self, block: &BlockTransaction<'_>) -> Result<(), BlockError> {
        let (chain, height) = (block.chain().0, block.block().height.to_sql());
        for event in block.token_events().await? {
            let Some(sender) = event.from else { continue };
            // No inverse: when the block is replaced, the row is put back as it was, or taken away.
            block
                .execute(
                    "insert into largest_transfer as l (chain_id, token, height, sender, amount)
                     values ($1, $2, $3, $4, $5)
                     on conflict (chain_id, token) do update
                     set height = excluded.height, sender = excluded.sender, amount = excluded.amount
                     where excluded.amount > l.amount",
                    &[&chain, &&*event.token, &height, &&*sender, &Numeric::from(event.amount)],
                )
                .await?;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("usage: largest_transfer DATABASE_URL [once]")?;
    let store = Store::open(&url, StoreSettings::default())?;
    store.migrate().await?;
    let settings = ProcessSettings {
        once: arguments.next().is_some(),
        projections: Projections::default().with(LargestTransfer),
        ..ProcessSettings::default()
    };
    // Tells `ebbtide status` and others that this program is alive, and how it is.
    let (voices, metrics) = (Voices::default(), Metrics::new());
    let watch = Arc::new(ProcessWatch::new(settings.poll_interval, &voices, &metrics));
    let heart = Heart::new(&store, "largest_transfer", &voices, &Health::new(), &metrics);
    let (done, is_done) = tokio::sync::oneshot::channel();
    let beating = tokio::spawn(heart.beat(is_done.map(|_| Ended::Done)));
    let wake = Wake::start(&store, WakeMode::Listen);
    process::run(store, settings, wake, watch, CancellationToken::new()).await?;
    let _ = done.send(());
    beating.await??;
    Ok(())
}
