//! Balances and totals, a page at a time, at any height whose history is kept.

use tokio_postgres::Row;

use super::{ChainState, Parameter, Snapshot, StoreError};

/// One balance, or one total.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// The token.
    pub token: String,
    /// The account; empty in totals.
    pub address: String,
    /// Base units as decimal digits, with a minus where history is missing.
    pub amount: String,
}

/// A range of tokens by bytes: from `low`, up to but without `high` (none: no end).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRange {
    /// Inclusive.
    pub low: String,
    /// Exclusive.
    pub high: Option<String>,
}

impl TokenRange {
    /// Every token.
    pub fn all() -> TokenRange {
        TokenRange { low: String::new(), high: None }
    }

    /// Exactly this token.
    pub fn exactly(token: &str) -> TokenRange {
        TokenRange { low: token.to_owned(), high: Some(successor(token)) }
    }

    /// Every token that begins with `prefix`, which must not end in the last character there is.
    pub fn beginning_with(prefix: &str) -> TokenRange {
        let mut high = prefix.to_owned();
        let next = high.pop().and_then(|last| char::from_u32(last as u32 + 1));
        high.extend(next);
        TokenRange { low: prefix.to_owned(), high: next.map(|_| high) }
    }

    /// What of this range lies after `token`.
    #[must_use]
    pub fn after(mut self, token: &str) -> TokenRange {
        let next = successor(token);
        if next > self.low {
            self.low = next;
        }
        self
    }
}

/// The lowest text above `text`: texts hold no NUL, so nothing fits between them.
fn successor(text: &str) -> String {
    format!("{text}\u{1}")
}

impl Snapshot<'_> {
    /// Whether any account ever had an event of exactly this token.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn token_is_known(&self, chain: &ChainState, token: &str) -> Result<bool, StoreError> {
        let sql = include_str!("../../../sql/queries/token_is_known.sql");
        let rows = self.rows(sql, &[&chain.chain_id, &token]).await?;
        Ok(rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or(false))
    }

    /// Up to `limit` sums per token, in token order; none where the history that would tell is not kept.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn totals(
        &self,
        chain: &ChainState,
        tokens: &TokenRange,
        height: i64,
        zero: bool,
        limit: i64,
    ) -> Result<Option<Vec<Balance>>, StoreError> {
        let sql = include_str!("../../../sql/queries/totals.sql");
        let rows = self.rows(sql, &[&chain.chain_id, &tokens.low, &tokens.high, &height, &zero, &limit]).await?;
        balances(&rows)
    }

    /// Up to `limit` balances of one account, in token order; none where the history that would tell is not kept.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn balances_of_account(
        &self,
        chain: &ChainState,
        tokens: &TokenRange,
        address: &str,
        height: i64,
        zero: bool,
        limit: i64,
    ) -> Result<Option<Vec<Balance>>, StoreError> {
        let sql = include_str!("../../../sql/queries/balances_of_account.sql");
        let parameters: &[&dyn Parameter] =
            &[&chain.chain_id, &tokens.low, &tokens.high, &address, &height, &zero, &limit];
        balances(&self.rows(sql, parameters).await?)
    }

    /// Up to `limit` balances in the tokens of the range, after the account `after` of its first token, in key order; none
    /// where the history that would tell is not kept.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn balances_of_token(
        &self,
        chain: &ChainState,
        tokens: &TokenRange,
        after: &str,
        height: i64,
        zero: bool,
        limit: i64,
    ) -> Result<Option<Vec<Balance>>, StoreError> {
        let sql = include_str!("../../../sql/queries/balances_of_token.sql");
        let parameters: &[&dyn Parameter] =
            &[&chain.chain_id, &tokens.low, &after, &tokens.high, &height, &zero, &limit];
        balances(&self.rows(sql, parameters).await?)
    }
}

/// None where an amount is unknown: the change that would tell is not kept.
fn balances(rows: &[Row]) -> Result<Option<Vec<Balance>>, StoreError> {
    let read = |row: &Row| -> Result<Option<Balance>, StoreError> {
        let amount: Option<String> = row.try_get("amount")?;
        let (token, address) = (row.try_get("token")?, row.try_get("address")?);
        Ok(amount.map(|amount| Balance { token, address, amount }))
    };
    rows.iter().map(|row| read(row).transpose()).collect::<Option<_>>().transpose()
}
