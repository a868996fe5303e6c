//! Balances as they are now, with the chain and the block they are true at, by one statement each: a snapshot by itself,
//! in one round trip.

use tokio_postgres::Row;

use super::{Balance, ChainChoice, ChainNow, Reader, StoreError, choice};
use crate::chain::Kind;

/// A statement that begins with the chain to read.
macro_rules! beginning_with_the_chain {
    ($file:literal) => {
        concat!("with chain as (", include_str!("../../../sql/queries/chain_now.sql"), ")", include_str!($file))
    };
}

/// A name in the spelling of each kind of chain: the statement that reads the chain takes the one of its kind.
#[derive(Debug)]
pub struct Spelt(Vec<String>);

impl Spelt {
    /// The name as `spelling` has it for each kind.
    pub fn by(spelling: impl Fn(Kind) -> String) -> Spelt {
        Spelt(Kind::ALL.into_iter().map(spelling).collect())
    }
}

/// A list as it is now.
#[derive(Debug)]
pub struct ListNow {
    /// Which chain it is of. Unless it is found, the rest is empty.
    pub chain: ChainChoice<ChainNow>,
    /// Whether an account has had an event of the token, as far as the statement tells: false where no token was named, and
    /// where one account was asked for that had none.
    pub token_is_known: bool,
    /// The rows.
    pub rows: Vec<Balance>,
}

impl Reader {
    /// What an account has in exactly this token: no row, or one.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn balance_now(
        &self,
        chain: Option<&str>,
        projection: &str,
        token: &Spelt,
        address: &Spelt,
    ) -> Result<ListNow, StoreError> {
        let sql = beginning_with_the_chain!("../../../sql/queries/balance_now.sql");
        let rows = self.rows(sql, &[&chain, &projection, &kinds(), &token.0, &address.0]).await?;
        let chain = choice(&rows, ChainNow::of)?;
        let mut balances = Vec::new();
        if let (ChainChoice::Found(_), [row]) = (&chain, &rows[..])
            && let Some(token) = row.try_get("token")?
        {
            balances.push(Balance { token, address: row.try_get("address")?, amount: row.try_get("amount")? });
        }
        Ok(ListNow { chain, token_is_known: !balances.is_empty(), rows: balances })
    }

    /// Up to `limit` balances of an account in the tokens above `after`, in token order; without `zero` those that are none
    /// are left out.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn balances_of_account_now(
        &self,
        chain: Option<&str>,
        projection: &str,
        address: &Spelt,
        after: &str,
        zero: bool,
        limit: i64,
    ) -> Result<ListNow, StoreError> {
        let sql = beginning_with_the_chain!("../../../sql/queries/balances_of_account_now.sql");
        let rows = self.rows(sql, &[&chain, &projection, &kinds(), &address.0, &after, &zero, &limit]).await?;
        list(&rows)
    }

    /// Up to `limit` sums per token of the tokens above `after`, in token order; without `zero` those that are none are left
    /// out.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn totals_now(
        &self,
        chain: Option<&str>,
        projection: &str,
        after: &str,
        zero: bool,
        limit: i64,
    ) -> Result<ListNow, StoreError> {
        let sql = beginning_with_the_chain!("../../../sql/queries/totals_now.sql");
        list(&self.rows(sql, &[&chain, &projection, &after, &zero, &limit]).await?)
    }

    /// Up to `limit` balances in exactly this token of the accounts above `after`, in the order of their texts; without
    /// `zero` those that are none are left out.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn balances_of_token_now(
        &self,
        chain: Option<&str>,
        projection: &str,
        token: &Spelt,
        after: &str,
        zero: bool,
        limit: i64,
    ) -> Result<ListNow, StoreError> {
        let sql = beginning_with_the_chain!("../../../sql/queries/balances_of_token_now.sql");
        let rows = self.rows(sql, &[&chain, &projection, &kinds(), &token.0, &after, &zero, &limit]).await?;
        list(&rows)
    }
}

/// In the order in which [`Spelt`] holds its spellings.
fn kinds() -> Vec<&'static str> {
    Kind::ALL.map(Kind::as_str).to_vec()
}

/// A row with three columns of equal length for the rows of the list: as rows of their own each would repeat the chain.
fn list(rows: &[Row]) -> Result<ListNow, StoreError> {
    let chain = choice(rows, ChainNow::of)?;
    let (ChainChoice::Found(_), [row]) = (&chain, rows) else {
        return Ok(ListNow { chain, token_is_known: false, rows: Vec::new() });
    };
    let column = |name| Ok::<_, StoreError>(row.try_get::<_, Option<Vec<String>>>(name)?.unwrap_or_default());
    let (tokens, addresses, amounts) = (column("tokens")?, column("addresses")?, column("amounts")?);
    if tokens.len() != amounts.len() || addresses.len() != amounts.len() {
        return Err(StoreError::Nonsense { what: "columns of a list that differ in length".to_owned() });
    }
    let rows = tokens.into_iter().zip(addresses).zip(amounts);
    let rows = rows.map(|((token, address), amount)| Balance { token, address, amount }).collect();
    Ok(ListNow { chain, token_is_known: row.try_get("token_is_known")?, rows })
}
