//! Statements on one connection, each prepared at its first use.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use super::StoreError;

/// The statements prepared on one connection, by their text.
#[derive(Debug, Default)]
pub struct Prepared(Mutex<HashMap<String, Statement>>);

/// A connection with its prepared statements. Cheap to copy. Futures polled together (`try_join!`) are sent together: one
/// round trip for all.
#[derive(Debug, Clone, Copy)]
pub struct Session<'a> {
    client: &'a Client,
    prepared: &'a Prepared,
}

impl<'a> Session<'a> {
    /// On this connection, on which these were prepared and no others.
    pub fn new(client: &'a Client, prepared: &'a Prepared) -> Session<'a> {
        Session { client, prepared }
    }

    /// The rows of a statement with its parameters (`$1`, `$2`, …).
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        Ok(self.client.query(&self.statement(sql).await?, parameters).await?)
    }

    /// Runs a statement with its parameters; how many rows it touched.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, StoreError> {
        Ok(self.client.execute(&self.statement(sql).await?, parameters).await?)
    }

    async fn statement(&self, sql: &str) -> Result<Statement, StoreError> {
        let known = || self.prepared.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statement) = known().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        known().insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}
