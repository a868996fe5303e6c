//! Option vaults, a page at a time: balances of vaults and providers at any height, everything else as it is now.

use super::rows::{BidRow, BuyerRow, ProviderRow, QueuedRow, RoundRow, VaultRow};
use super::statements::{bid_row, buyer_row, provider_row, queued_row, round_row, vault_row, whole};
use crate::store::reads::{ChainState, Parameter, Snapshot};
use crate::store::{Row, StoreError};

/// A row as it stood at some height.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing<T> {
    /// The row. Its three balances are of that height; what has no history is as it is now.
    pub row: T,
    /// Height of the newest change up to there.
    pub latest_block: i64,
}

impl Snapshot<'_> {
    /// Up to `limit` vaults after the address `after` at this height, in the order of their texts.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn vaults(
        &self,
        chain: &ChainState,
        height: i64,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Standing<VaultRow>>, StoreError> {
        self.vaults_at(chain, height, after, None, limit).await
    }

    /// The vault of this address at this height.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn vault(
        &self,
        chain: &ChainState,
        height: i64,
        address: &str,
    ) -> Result<Option<Standing<VaultRow>>, StoreError> {
        Ok(self.vaults_at(chain, height, "", Some(address), 1).await?.pop())
    }

    async fn vaults_at(
        &self,
        chain: &ChainState,
        height: i64,
        after: &str,
        only: Option<&str>,
        limit: i64,
    ) -> Result<Vec<Standing<VaultRow>>, StoreError> {
        let sql = include_str!("../../../sql/queries/vaults_at.sql");
        self.standing(sql, &[&chain.chain_id, &height, &after, &only, &limit], vault_row).await
    }

    /// Up to `limit` providers of a vault after the address `after` at this height, in the order of their texts.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn providers(
        &self,
        chain: &ChainState,
        height: i64,
        vault: &str,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Standing<ProviderRow>>, StoreError> {
        let sql = include_str!("../../../sql/queries/providers_of_vault.sql");
        let only = None::<&str>;
        self.standing(sql, &[&chain.chain_id, &height, &vault, &after, &only, &limit], provider_row).await
    }

    /// One provider of a vault at this height.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn provider(
        &self,
        chain: &ChainState,
        height: i64,
        vault: &str,
        address: &str,
    ) -> Result<Option<Standing<ProviderRow>>, StoreError> {
        let sql = include_str!("../../../sql/queries/providers_of_vault.sql");
        let parameters: &[&dyn Parameter] = &[&chain.chain_id, &height, &vault, &"", &Some(address), &1i64];
        Ok(self.standing(sql, parameters, provider_row).await?.pop())
    }

    /// What an account had at this height in up to `limit` vaults after `after`, in the order of their texts.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn vaults_of_account(
        &self,
        chain: &ChainState,
        height: i64,
        account: &str,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Standing<ProviderRow>>, StoreError> {
        let sql = include_str!("../../../sql/queries/providers_of_account.sql");
        self.standing(sql, &[&chain.chain_id, &height, &account, &after, &limit], provider_row).await
    }

    /// Up to `limit` rounds of a vault with numbers above `after` (None means from the first), lowest first, as they are now.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn rounds(
        &self,
        chain: &ChainState,
        vault: &str,
        after: Option<u64>,
        limit: i64,
    ) -> Result<Vec<Standing<RoundRow>>, StoreError> {
        let sql = include_str!("../../../sql/queries/rounds_of_vault.sql");
        let after = after.map(whole);
        self.standing(sql, &[&chain.chain_id, &vault, &after, &limit], round_row).await
    }

    /// The round of this address, as it is now.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn round(&self, chain: &ChainState, address: &str) -> Result<Option<Standing<RoundRow>>, StoreError> {
        let sql = include_str!("../../../sql/queries/round_at.sql");
        Ok(self.standing(sql, &[&chain.chain_id, &address], round_row).await?.pop())
    }

    /// Up to `limit` bids of a round after `after`, in the order of their ids' texts, as they are now.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn bids(
        &self,
        chain: &ChainState,
        round: &str,
        after: &str,
        limit: i64,
    ) -> Result<Vec<BidRow>, StoreError> {
        let sql = include_str!("../../../sql/queries/bids_of_round.sql");
        self.each(sql, &[&chain.chain_id, &round, &after, &limit], bid_row).await
    }

    /// Up to `limit` buyers of a round after `after`, in the order of their texts, as they are now.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn buyers(
        &self,
        chain: &ChainState,
        round: &str,
        after: &str,
        limit: i64,
    ) -> Result<Vec<BuyerRow>, StoreError> {
        let sql = include_str!("../../../sql/queries/buyers_of_round.sql");
        self.each(sql, &[&chain.chain_id, &round, &after, &limit], buyer_row).await
    }

    /// Up to `limit` withdrawals queued in a round by providers after `after`, in the order of their texts, as they are
    /// now.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn queue(
        &self,
        chain: &ChainState,
        round: &str,
        after: &str,
        limit: i64,
    ) -> Result<Vec<QueuedRow>, StoreError> {
        let sql = include_str!("../../../sql/queries/queue_of_round.sql");
        self.each(sql, &[&chain.chain_id, &round, &after, &limit], queued_row).await
    }

    /// What an account is entitled to in up to `limit` rounds after `after`, in the order of their texts, as it is now.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn options_of_account(
        &self,
        chain: &ChainState,
        account: &str,
        after: &str,
        limit: i64,
    ) -> Result<Vec<BuyerRow>, StoreError> {
        let sql = include_str!("../../../sql/queries/options_of_account.sql");
        self.each(sql, &[&chain.chain_id, &account, &after, &limit], buyer_row).await
    }

    /// Up to `limit` bids of an account after the bid `after` (round, id), in the order of their texts, as they are now.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn bids_of_account(
        &self,
        chain: &ChainState,
        account: &str,
        after: (&str, &str),
        limit: i64,
    ) -> Result<Vec<BidRow>, StoreError> {
        let sql = include_str!("../../../sql/queries/bids_of_account.sql");
        self.each(sql, &[&chain.chain_id, &account, &after.0, &after.1, &limit], bid_row).await
    }

    async fn each<T>(
        &self,
        sql: &str,
        parameters: &[&dyn Parameter],
        read: fn(&Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        self.rows(sql, parameters).await?.iter().map(read).collect()
    }

    async fn standing<T>(
        &self,
        sql: &str,
        parameters: &[&dyn Parameter],
        read: fn(&Row) -> Result<T, StoreError>,
    ) -> Result<Vec<Standing<T>>, StoreError> {
        let rows = self.rows(sql, parameters).await?;
        rows.iter().map(|row| Ok(Standing { row: read(row)?, latest_block: row.try_get("latest_block")? })).collect()
    }
}
