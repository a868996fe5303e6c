//! Bringing a database to this version's schema, and finding what of it is another by now.
//!
//! refinery takes no lock, so two processes at once would collide: a connection of its own holds an advisory lock
//! around it. An advisory lock and not a table's, since there may be no table yet.

use sha2::{Digest, Sha256};
use tokio_postgres::{Client, GenericClient};

use super::manifest::{self, Objects};
use super::{Store, StoreError};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Triggers, functions and views, in order; applied again whenever their text changed, or what they made.
const TRIGGERS: [&str; 15] = [
    include_str!("../../sql/triggers/05_manifest.sql"),
    include_str!("../../sql/triggers/10_chain.sql"),
    include_str!("../../sql/triggers/20_bells.sql"),
    include_str!("../../sql/triggers/30_functions.sql"),
    include_str!("../../sql/triggers/35_ledger.sql"),
    include_str!("../../sql/triggers/40_views.sql"),
    include_str!("../../sql/triggers/45_notices.sql"),
    include_str!("../../sql/triggers/50_option_vaults.sql"),
    include_str!("../../sql/triggers/60_tracking.sql"),
    include_str!("../../sql/triggers/65_rebuild.sql"),
    include_str!("../../sql/triggers/70_projections.sql"),
    include_str!("../../sql/triggers/72_told_rows.sql"),
    include_str!("../../sql/triggers/75_verify.sql"),
    include_str!("../../sql/triggers/80_followers.sql"),
    include_str!("../../sql/triggers/85_always.sql"),
];

/// Who may do what; granted each time, since roles come and go.
const RIGHTS: &str = include_str!("../../sql/triggers/90_rights.sql");

/// The last migration this version knows.
pub const SCHEMA_VERSION: i64 = 9;

/// "ebbtide" in ASCII, cut to eight bytes: the advisory lock that migrations hold.
const MIGRATION_LOCK: i64 = 0x0065_6262_7469_6465;

/// What migrating did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Migrations applied now; 0 means that the schema was up to date.
    pub applied: usize,
    /// The version the schema is at.
    pub version: i64,
    /// What was missing or another than the last migration had made it, and is as it should be again.
    pub repaired: Vec<String>,
}

impl Store {
    /// Brings the schema to this version. Safe from several processes at once; the others wait, say for whom, and find it done.
    ///
    /// # Errors
    /// [`StoreError::TooNew`] for a database of a newer version, and [`StoreError::SchemaOfOthers`] for a schema that others
    /// may change, which are left as they are; [`StoreError::Migration`] for tables that were changed by hand.
    pub async fn migrate(&self) -> Result<Migrated, StoreError> {
        self.migrate_telling(|_| {}).await
    }

    /// As [`migrate`](Store::migrate), and tells what is waited for whenever that changes: for the lock and who holds it, or for
    /// the schema.
    ///
    /// # Errors
    /// As [`migrate`](Store::migrate).
    pub async fn migrate_telling(&self, waits: impl Fn(&str)) -> Result<Migrated, StoreError> {
        let holder = self.connect().await?;
        // Without a limit: the holder of the lock may be migrating a large database.
        holder.batch_execute("set lock_timeout = 0; set statement_timeout = 0").await?;
        if !holder.query_one("select pg_try_advisory_lock($1)", &[&MIGRATION_LOCK]).await?.get::<_, bool>(0) {
            let other = holder.query_opt(include_str!("../../sql/queries/lock_holder.sql"), &[&MIGRATION_LOCK]).await?;
            if let Some(other) = other {
                let pid: i32 = other.try_get("pid")?;
                let role: Option<String> = other.try_get("role")?;
                let program: Option<String> = other.try_get("application_name")?;
                let (role, program) = (role.unwrap_or_default(), program.unwrap_or_default());
                let what = format!(
                    "for the migration lock, which process {pid} of the server holds (role {role:?}, program {program:?})"
                );
                waits(&what);
                tracing::info!("Waiting {what}");
            }
            holder.query_one("select pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await?;
        }
        waits("for its schema to be brought up to date");
        let done = self.migrate_alone().await;
        // Ends with the connection anyway; letting go early spares the next one the wait for our socket to close.
        holder.query_one("select pg_advisory_unlock($1)", &[&MIGRATION_LOCK]).await?;
        done
    }

    async fn migrate_alone(&self) -> Result<Migrated, StoreError> {
        let mut client = self.connect().await?;
        client.batch_execute("set statement_timeout = 0; set lock_timeout = '1min'; set ebbtide.ledger = on").await?;
        let others = client.query_opt(include_str!("../../sql/queries/schema_of_others.sql"), &[]).await?;
        if let Some(row) = others {
            return Err(StoreError::SchemaOfOthers { what: row.try_get("what")?, role: row.try_get("role")? });
        }
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
        // By what the version made that was here last, whichever that is: what a trigger did not see is not known after an upgrade
        // either.
        let repaired = match manifest::stored(&client).await? {
            Some(should) => manifest::differences(&should, &manifest::objects(&client).await?),
            None => Vec::new(),
        };
        let report = embedded::migrations::runner()
            .set_abort_divergent(true)
            .set_abort_missing(true)
            .run_async(&mut client)
            .await
            .map_err(|error| StoreError::Migration { reason: reason_of(&error) })?;
        let applied = report.applied_migrations().len();
        let is_ours = applied == 0 && is_of_this_version(&client).await?;
        let kept = if is_ours { manifest::stored(&client).await? } else { None };
        if kept.is_none() || !repaired.is_empty() {
            make(&mut client, kept, &repaired).await?;
        }
        client.batch_execute(RIGHTS).await?;
        client.batch_execute("select lift_revisions()").await?;
        let left = drift(&client).await?;
        if !left.is_empty() {
            let reason = format!(
                "{}; `migrate` restores functions, views and triggers, and leaves tables to you: bring these back by hand, or \
                 from a backup",
                manifest::named(&left)
            );
            return Err(StoreError::Migration { reason });
        }
        Ok(Migrated { applied, version: SCHEMA_VERSION, repaired })
    }

    /// Whether the schema is the one that this version makes, and nothing of it was lost or changed since.
    ///
    /// # Errors
    /// [`StoreError::TooOld`], [`StoreError::TooNew`], [`StoreError::OtherText`] or [`StoreError::Drifted`] when it is not.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let mut guest = self.guest(&self.config, &self.greeting).await?;
        let tx = guest.begin().await?;
        check(&tx).await
    }
}

/// See [`Store::check_schema`]. Nothing is prepared by a name, which a session that is lent would keep.
pub(super) async fn check<C: GenericClient>(client: &C) -> Result<(), StoreError> {
    let found = version(client).await?;
    match found.cmp(&SCHEMA_VERSION) {
        std::cmp::Ordering::Less => return Err(StoreError::TooOld { found, known: SCHEMA_VERSION }),
        std::cmp::Ordering::Greater => return Err(StoreError::TooNew { found, known: SCHEMA_VERSION }),
        std::cmp::Ordering::Equal => {}
    }
    if !is_of_this_version(client).await? {
        return Err(StoreError::OtherText);
    }
    let drift = drift(client).await?;
    if drift.is_empty() { Ok(()) } else { Err(StoreError::Drifted { what: manifest::named(&drift) }) }
}

async fn version<C: GenericClient>(client: &C) -> Result<i64, StoreError> {
    let exists = client
        .query_typed_one("select to_regclass('ebbtide.refinery_schema_history') is not null", &[])
        .await?
        .get::<_, bool>(0);
    if !exists {
        return Ok(0);
    }
    let row =
        client.query_typed_one("select coalesce(max(version), 0)::int8 from refinery_schema_history", &[]).await?;
    Ok(row.get(0))
}

/// What the comment on refinery's table says once the texts of this version were applied.
fn mark() -> String {
    let mut hash = Sha256::new();
    for text in TRIGGERS {
        hash.update(text);
    }
    hash.finalize().iter().fold("triggers ".to_owned(), |mark, byte| mark + &format!("{byte:02x}"))
}

async fn is_of_this_version<C: GenericClient>(client: &C) -> Result<bool, StoreError> {
    let sql = "select obj_description(to_regclass('ebbtide.refinery_schema_history'), 'pg_class')";
    let found: Option<String> = client.query_typed_one(sql, &[]).await?.try_get(0)?;
    Ok(found == Some(mark()))
}

/// What is missing or another than `migrate` made it, in words.
async fn drift<C: GenericClient>(client: &C) -> Result<Vec<String>, StoreError> {
    match manifest::stored(client).await? {
        Some(should) => Ok(manifest::differences(&should, &manifest::objects(client).await?)),
        None => Ok(vec!["the table schema_manifest is missing or empty".to_owned()]),
    }
}

/// Applies the texts in one transaction, so that no writer ever meets a table without its triggers, and keeps what they make.
/// Not done where nothing changed: replacing a trigger takes a lock that a busy table notices.
async fn make(client: &mut Client, kept: Option<Objects>, drift: &[String]) -> Result<(), StoreError> {
    let mut migrations = embedded::migrations::runner().get_migrations().clone();
    migrations.sort();
    let texts: Vec<&str> = migrations.iter().filter_map(refinery::Migration::sql).chain(TRIGGERS).collect();
    // Not from what is there, or a column that someone dropped would be as it should be. A role that may not create a schema
    // has no other choice, the first time.
    let fresh = manifest::fresh(client, &texts).await?;
    let tx = client.transaction().await?;
    // A view cannot be replaced by one with fewer columns.
    for view in drift.iter().filter_map(|d| d.strip_prefix("the view ")?.strip_suffix(" was changed")) {
        tx.batch_execute(&["drop view ", view].concat()).await?;
    }
    for text in TRIGGERS {
        tx.batch_execute(text).await?;
    }
    if drift.iter().any(|what| what.starts_with("the trigger ") || what.starts_with("the function ")) {
        tracing::warn!(
            "Repaired: {}. What was written meanwhile may not have been followed, so every projection is built again",
            manifest::named(drift)
        );
        tx.batch_execute("update checkpoints set redo_from = 0 where start_height is not null").await?;
    }
    let made = match fresh.or(kept) {
        Some(made) => made,
        None => manifest::objects(&tx).await?,
    };
    manifest::keep(&tx, &made).await?;
    // `comment on` takes no parameters; the mark is a hash of ours.
    tx.batch_execute(&["comment on table refinery_schema_history is '", &mark(), "'"].concat()).await?;
    tx.commit().await?;
    Ok(())
}

fn reason_of(error: &refinery::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        if let Some(db) = cause.downcast_ref::<tokio_postgres::Error>() {
            // All that stands behind it as well.
            text.push_str(&super::describe(db));
            break;
        }
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
