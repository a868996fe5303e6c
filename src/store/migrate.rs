//! Bringing a database to this version's schema.
//!
//! refinery takes no lock, so two processes at once would collide: a connection of its own holds an advisory lock
//! around it. An advisory lock and not a table's, since there may be no table yet.

use std::hash::{Hash, Hasher};

use tokio_postgres::Client;

use super::{Store, StoreError};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Triggers, functions and views, in order; applied again whenever their text changed.
const TRIGGERS: [&str; 11] = [
    include_str!("../../sql/triggers/10_chain.sql"),
    include_str!("../../sql/triggers/20_bells.sql"),
    include_str!("../../sql/triggers/30_functions.sql"),
    include_str!("../../sql/triggers/40_views.sql"),
    include_str!("../../sql/triggers/50_option_vaults.sql"),
    include_str!("../../sql/triggers/60_tracking.sql"),
    include_str!("../../sql/triggers/65_rebuild.sql"),
    include_str!("../../sql/triggers/70_projections.sql"),
    include_str!("../../sql/triggers/75_verify.sql"),
    include_str!("../../sql/triggers/80_followers.sql"),
    include_str!("../../sql/triggers/90_rights.sql"),
];

/// The last migration this version knows.
pub const SCHEMA_VERSION: i64 = 5;

/// "ebbtide" in ASCII, cut to eight bytes: the advisory lock that migrations hold.
const MIGRATION_LOCK: i64 = 0x0065_6262_7469_6465;

/// What migrating did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// Migrations applied now; 0: the schema was up to date.
    pub applied: usize,
    /// The version the schema is at.
    pub version: i64,
}

impl Store {
    /// Brings the schema to this version. Safe from several processes at once; the others wait and find it done.
    ///
    /// # Errors
    /// [`StoreError::TooNew`] for a database of a newer version, which is left as it is.
    pub async fn migrate(&self) -> Result<Migrated, StoreError> {
        let holder = self.connect().await?;
        holder.batch_execute("set lock_timeout = '10min'; set statement_timeout = '10min'").await?;
        holder.query_one("select pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await?;
        let done = self.migrate_alone().await;
        // Ends with the connection anyway; letting go early spares the next one the wait for our socket to close.
        holder.query_one("select pg_advisory_unlock($1)", &[&MIGRATION_LOCK]).await?;
        done
    }

    async fn migrate_alone(&self) -> Result<Migrated, StoreError> {
        let mut client = self.connect().await?;
        client.batch_execute("set statement_timeout = 0; set lock_timeout = '1min'").await?;
        let found = version(&client).await?;
        if found > SCHEMA_VERSION {
            return Err(StoreError::TooNew { found, known: SCHEMA_VERSION });
        }
        // `create schema if not exists` asks for the right to create before it looks: a role that only owns its
        // schema would fail.
        let exists = client.query_one("select to_regnamespace('ebbtide') is not null", &[]).await?.get::<_, bool>(0);
        if !exists {
            client.batch_execute("create schema ebbtide").await?;
        }
        client.batch_execute("set client_min_messages = warning").await?;
        let report = embedded::migrations::runner()
            .set_abort_divergent(true)
            .set_abort_missing(true)
            .run_async(&mut client)
            .await
            .map_err(|error| StoreError::Migration { reason: reason_of(&error) })?;
        apply_triggers(&mut client).await?;
        Ok(Migrated { applied: report.applied_migrations().len(), version: SCHEMA_VERSION })
    }

    /// Whether the schema is at this version.
    ///
    /// # Errors
    /// [`StoreError::TooOld`] or [`StoreError::TooNew`] when it is not.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let client = self.reader().await?;
        let found = version(&client).await?;
        match found.cmp(&SCHEMA_VERSION) {
            std::cmp::Ordering::Less => Err(StoreError::TooOld { found, known: SCHEMA_VERSION }),
            std::cmp::Ordering::Greater => Err(StoreError::TooNew { found, known: SCHEMA_VERSION }),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }
}

async fn version(client: &Client) -> Result<i64, StoreError> {
    let exists = client
        .query_one("select to_regclass('ebbtide.refinery_schema_history') is not null", &[])
        .await?
        .get::<_, bool>(0);
    if !exists {
        return Ok(0);
    }
    let row = client.query_one("select coalesce(max(version), 0)::int8 from refinery_schema_history", &[]).await?;
    Ok(row.get(0))
}

/// In one transaction, so that no writer ever meets a table without its triggers. Left out when nothing changed:
/// replacing a trigger takes a lock that a busy table notices.
async fn apply_triggers(client: &mut Client) -> Result<(), StoreError> {
    let mut hasher = std::hash::DefaultHasher::new();
    TRIGGERS.hash(&mut hasher);
    let mark = format!("triggers {:016x}", hasher.finish());
    let found: Option<String> = client
        .query_one("select obj_description('ebbtide.refinery_schema_history'::regclass, 'pg_class')", &[])
        .await?
        .get(0);
    if found.as_deref() == Some(&mark) {
        return Ok(());
    }
    let tx = client.transaction().await?;
    for text in TRIGGERS {
        tx.batch_execute(text).await?;
    }
    // `comment on` takes no parameters; the mark is a hash of ours.
    tx.batch_execute(&["comment on table refinery_schema_history is '", &mark, "'"].concat()).await?;
    tx.commit().await?;
    Ok(())
}

fn reason_of(error: &refinery::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        if let Some(db) = cause.downcast_ref::<tokio_postgres::Error>() {
            text.push_str(": ");
            text.push_str(&super::describe(db));
        }
        source = cause.source();
    }
    text
}
