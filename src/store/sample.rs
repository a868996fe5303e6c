//! A few balances taken out at random, to be held against what others say of them.

use super::numeric::Numeric;
use super::{Store, StoreError};
use crate::chain::delta::Delta;
use crate::chain::{BlockRef, Hash, Height, Kind, Text};

/// Balances of one chain at one block.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The grammar of the chain's texts.
    pub kind: Kind,
    /// What the network called itself when a source stored its first blocks. None where none has, or none that knows.
    pub network_id: Option<String>,
    /// The block they are true at; None means nothing is applied yet.
    pub at: Option<BlockRef>,
    /// Token, holder, amount.
    pub balances: Vec<(Text, Text, Delta)>,
}

impl Store {
    /// At most so many balances of a chain, chosen again each time.
    ///
    /// # Errors
    /// An unknown chain, or whatever Postgres says.
    pub async fn sample_balances(&self, chain: &str, most: u32) -> Result<Sample, StoreError> {
        // A connection of its own: all balances are looked at, and of many that takes long.
        let client = self.connect().await?;
        client.batch_execute("set statement_timeout = 0").await?;
        let rows =
            client.query(include_str!("../../sql/queries/sample_balances.sql"), &[&chain, &i64::from(most)]).await?;
        let nonsense = |what: &str| StoreError::Nonsense { what: what.to_owned() };
        let first = rows.first().ok_or_else(|| nonsense("a chain that is there and is not"))?;
        let kind: &str = first.try_get("kind")?;
        let height: Option<i64> = first.try_get("height")?;
        let hash: Option<&str> = first.try_get("hash")?;
        let at = match (height, hash) {
            (Some(height), Some(hash)) => {
                let height = Height::try_from(height).map_err(|e| nonsense(&e.to_string()))?;
                Some(BlockRef { height, hash: Hash::new(hash) })
            }
            _ => None,
        };
        let mut balances = Vec::with_capacity(rows.len());
        for row in &rows {
            let Some(token) = row.try_get::<_, Option<&str>>("token")? else { continue };
            let Numeric(amount) = row.try_get("amount")?;
            balances.push((Text::from(token), Text::from(row.try_get::<_, &str>("address")?), amount));
        }
        Ok(Sample {
            kind: Kind::parse(kind).ok_or_else(|| nonsense(&["chains.kind ", kind].concat()))?,
            network_id: first.try_get("network_id")?,
            at,
            balances,
        })
    }
}
