//! What operators ask for: the steering functions.

use super::{Store, StoreError};

impl Store {
    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.connect_silently(&self.config).await?.batch_execute("select 1").await?;
        Ok(())
    }

    /// Has blocks applied again from a height on.
    pub async fn replay(&self, chain: &str, from: u64, projection: Option<&str>) -> Result<(), StoreError> {
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        self.reader().await?.execute("select replay($1, $2, $3)", &[&chain, &from, &projection]).await?;
        Ok(())
    }

    /// Stops projections where they are, or takes them to a height.
    pub async fn pause(&self, chain: &str, projection: Option<&str>, at: Option<u64>) -> Result<(), StoreError> {
        let at = at.map(|at| i64::try_from(at).unwrap_or(i64::MAX));
        self.reader().await?.execute("select pause($1, $2, $3)", &[&chain, &projection, &at]).await?;
        Ok(())
    }

    /// Lets paused and halted projections go on.
    pub async fn resume(&self, chain: &str, projection: Option<&str>) -> Result<(), StoreError> {
        self.reader().await?.execute("select resume($1, $2)", &[&chain, &projection]).await?;
        Ok(())
    }
}
