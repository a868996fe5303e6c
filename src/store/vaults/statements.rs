//! Loading the rows a block needs, and writing back what became of them.

use ruint::Uint;
use tokio_postgres::types::ToSql;
use tokio_postgres::{GenericClient, Row as SqlRow, Statement};

use super::super::StoreError;
use super::super::numeric::Numeric;
use super::{
    BidRow, BuyerRow, Changes, Layout, ProviderRow, QueuedRow, RoundRow, RoundState, Row, VaultParameters, VaultRow,
    Wanted,
};
use crate::chain::delta::Delta;
use crate::chain::{Amount, BlockRef, ChainId, Height, Text};

/// An address that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// The address.
    pub address: Text,
    /// Its vault; the address itself for a vault.
    pub vault: Text,
    /// How the vault's events are read.
    pub layout: Layout,
}

/// The statements of the option vaults, prepared on one connection.
///
/// They look rows up by the keys they are given. On a connection with nested loops switched off, as the ledger's are, two
/// providers cost a read of all 40,000 of the chain (5 ms for 0.1 ms, measured): such a connection must switch them on,
/// and hash joins off, before it prepares these. Each call sends all of its statements before it waits.
#[derive(Debug)]
pub struct VaultStatements {
    directory: Statement,
    vaults: Statement,
    providers: Statement,
    rounds: Statement,
    queue: Statement,
    buyers: Statement,
    bids: Statement,
    put_vaults: Statement,
    put_providers: Statement,
    put_rounds: Statement,
    put_queue: Statement,
    put_buyers: Statement,
    put_bids: Statement,
}

impl VaultStatements {
    /// Prepares them.
    pub async fn prepare<C: GenericClient + Sync>(client: &C) -> Result<VaultStatements, StoreError> {
        Ok(VaultStatements {
            directory: client.prepare(include_str!("../../../sql/queries/vault_directory.sql")).await?,
            vaults: client.prepare(include_str!("../../../sql/queries/vaults_wanted.sql")).await?,
            providers: client.prepare(include_str!("../../../sql/queries/vault_providers_wanted.sql")).await?,
            rounds: client.prepare(include_str!("../../../sql/queries/vault_rounds_wanted.sql")).await?,
            queue: client.prepare(include_str!("../../../sql/queries/vault_queue_wanted.sql")).await?,
            buyers: client.prepare(include_str!("../../../sql/queries/vault_buyers_wanted.sql")).await?,
            bids: client.prepare(include_str!("../../../sql/queries/vault_bids_wanted.sql")).await?,
            put_vaults: client.prepare(include_str!("../../../sql/queries/put_vaults.sql")).await?,
            put_providers: client.prepare(include_str!("../../../sql/queries/put_vault_providers.sql")).await?,
            put_rounds: client.prepare(include_str!("../../../sql/queries/put_vault_rounds.sql")).await?,
            put_queue: client.prepare(include_str!("../../../sql/queries/put_vault_queue.sql")).await?,
            put_buyers: client.prepare(include_str!("../../../sql/queries/put_vault_buyers.sql")).await?,
            put_bids: client.prepare(include_str!("../../../sql/queries/put_vault_bids.sql")).await?,
        })
    }

    /// Those of the addresses that are vaults or rounds followed at this height.
    pub async fn followed<C: GenericClient + Sync>(
        &self,
        client: &C,
        chain: ChainId,
        height: Height,
        addresses: impl IntoIterator<Item = &Text>,
    ) -> Result<Vec<Followed>, StoreError> {
        let addresses = texts(addresses);
        let rows = client.query(&self.directory, &[&chain.0, &height.to_sql(), &addresses]).await?;
        let followed = |row: &SqlRow| {
            let (address, vault) = (text(row, "address")?, text(row, "vault_address")?);
            Ok(Followed { address, vault, layout: word(row, "layout", Layout::parse)? })
        };
        rows.iter().map(followed).collect()
    }

    /// The rows that exist of those wanted; one may come twice.
    pub async fn load<C: GenericClient + Sync>(
        &self,
        client: &C,
        chain: ChainId,
        wanted: &Wanted,
    ) -> Result<Vec<Row>, StoreError> {
        let chain = chain.0;
        let vaults = texts(&wanted.vaults);
        let whole_vaults = texts(&wanted.vaults_with_providers);
        let [provider_vaults, providers] = pairs(&wanted.providers);
        let rounds = texts(&wanted.rounds);
        let number_vaults = texts(wanted.numbered_rounds.iter().map(|(vault, _)| vault));
        let numbers: Vec<Numeric> = wanted.numbered_rounds.iter().map(|(_, id)| whole(*id)).collect();
        let queue_rounds = texts(&wanted.rounds_with_queue);
        let queue_vaults = texts(wanted.queued.iter().map(|(vault, _, _)| vault));
        let queue_numbers: Vec<Numeric> = wanted.queued.iter().map(|(_, id, _)| whole(*id)).collect();
        let queue_accounts = texts(wanted.queued.iter().map(|(_, _, account)| account));
        let whole_rounds = texts(&wanted.rounds_with_bids);
        let [buyer_rounds, buyers] = pairs(&wanted.buyers);
        let [bid_rounds, bids] = pairs(&wanted.bids);
        let vaults: [Parameter<'_>; 2] = [&chain, &vaults];
        let providers: [Parameter<'_>; 4] = [&chain, &whole_vaults, &provider_vaults, &providers];
        let rounds: [Parameter<'_>; 4] = [&chain, &rounds, &number_vaults, &numbers];
        let queue: [Parameter<'_>; 5] = [&chain, &queue_rounds, &queue_vaults, &queue_numbers, &queue_accounts];
        let buyers: [Parameter<'_>; 4] = [&chain, &whole_rounds, &buyer_rounds, &buyers];
        let bids: [Parameter<'_>; 4] = [&chain, &whole_rounds, &bid_rounds, &bids];
        let (vaults, providers, rounds, queue, buyers, bids) = tokio::try_join!(
            client.query(&self.vaults, &vaults),
            client.query(&self.providers, &providers),
            client.query(&self.rounds, &rounds),
            client.query(&self.queue, &queue),
            client.query(&self.buyers, &buyers),
            client.query(&self.bids, &bids),
        )?;
        let reads: [(Vec<SqlRow>, Read); 6] = [
            (vaults, |row| vault_row(row).map(Row::Vault)),
            (providers, |row| provider_row(row).map(Row::Provider)),
            (rounds, |row| round_row(row).map(Row::Round)),
            (queue, |row| queued_row(row).map(Row::Queued)),
            (buyers, |row| buyer_row(row).map(Row::Buyer)),
            (bids, |row| bid_row(row).map(Row::Bid)),
        ];
        let mut loaded = Vec::new();
        for (rows, read) in reads {
            for row in &rows {
                loaded.push(read(row)?);
            }
        }
        Ok(loaded)
    }

    /// Writes the rows a block left, with their history. Inside the transaction that moves the checkpoint.
    pub async fn put<C: GenericClient + Sync>(
        &self,
        client: &C,
        chain: ChainId,
        block: &BlockRef,
        changes: &Changes,
    ) -> Result<(), StoreError> {
        let at = At { chain: chain.0, height: block.height.to_sql(), hash: block.hash.as_str() };
        tokio::try_join!(
            self.put_vaults(client, &at, &changes.vaults),
            self.put_providers(client, &at, &changes.providers),
            self.put_rounds(client, &at, &changes.rounds),
            self.put_queue(client, &at, &changes.queued),
            self.put_buyers(client, &at, &changes.buyers),
            self.put_bids(client, &at, &changes.bids),
        )?;
        Ok(())
    }

    async fn put_vaults<C: GenericClient + Sync>(
        &self,
        client: &C,
        at: &At<'_>,
        rows: &[VaultRow],
    ) -> Result<(), StoreError> {
        let felts = |read: fn(&VaultParameters) -> &Text| -> Vec<Option<&str>> {
            rows.iter().map(|row| said_at_deployment(row).map(|p| &**read(p))).collect()
        };
        let durations = |read: fn(&VaultParameters) -> u64| -> Vec<Option<Numeric>> {
            rows.iter().map(|row| said_at_deployment(row).map(|p| whole(read(p)))).collect()
        };
        let alphas: Vec<Option<Numeric>> =
            rows.iter().map(|row| said_at_deployment(row).map(|p| p.alpha.into())).collect();
        let strikes: Vec<Option<Numeric>> =
            rows.iter().map(|row| said_at_deployment(row).and_then(|p| signed(p.strike_level))).collect();
        let columns: [Parameter<'_>; 16] = [
            &texts(rows.iter().map(|row| &row.address)),
            &rows.iter().map(|row| row.layout.as_str()).collect::<Vec<_>>(),
            &amounts(rows, |row| row.unlocked_balance),
            &amounts(rows, |row| row.locked_balance),
            &amounts(rows, |row| row.stashed_balance),
            &rows.iter().map(|row| row.current_round.map(whole)).collect::<Vec<_>>(),
            &rows.iter().map(|row| row.current_round_address.as_deref()).collect::<Vec<_>>(),
            &felts(|p| &p.fossil_client_address),
            &felts(|p| &p.eth_address),
            &felts(|p| &p.option_round_class_hash),
            &alphas,
            &strikes,
            &durations(|p| p.round_transition_period),
            &durations(|p| p.auction_duration),
            &durations(|p| p.round_duration),
            &rows.iter().map(|row| row.deployment_date).collect::<Vec<_>>(),
        ];
        at.write(client, &self.put_vaults, rows.len(), &columns).await
    }

    async fn put_providers<C: GenericClient + Sync>(
        &self,
        client: &C,
        at: &At<'_>,
        rows: &[ProviderRow],
    ) -> Result<(), StoreError> {
        let columns: [Parameter<'_>; 6] = [
            &texts(rows.iter().map(|row| &row.vault_address)),
            &texts(rows.iter().map(|row| &row.address)),
            &amounts(rows, |row| row.unlocked_balance),
            &amounts(rows, |row| row.locked_balance),
            &amounts(rows, |row| row.stashed_balance),
            &amounts(rows, |row| row.start_liquidity),
        ];
        at.write(client, &self.put_providers, rows.len(), &columns).await
    }

    async fn put_rounds<C: GenericClient + Sync>(
        &self,
        client: &C,
        at: &At<'_>,
        rows: &[RoundRow],
    ) -> Result<(), StoreError> {
        let numbers =
            |read: fn(&RoundRow) -> u64| -> Vec<Numeric> { rows.iter().map(|row| whole(read(row))).collect() };
        let columns: [Parameter<'_>; 21] = [
            &texts(rows.iter().map(|row| &row.address)),
            &texts(rows.iter().map(|row| &row.vault_address)),
            &numbers(|row| row.round_id),
            &rows.iter().map(|row| row.state.as_str()).collect::<Vec<_>>(),
            &numbers(|row| row.start_date),
            &numbers(|row| row.end_date),
            &numbers(|row| row.settlement_date),
            &rows.iter().map(|row| row.deployment_date).collect::<Vec<_>>(),
            &amounts(rows, |row| row.strike_price),
            &amounts(rows, |row| row.cap_level),
            &amounts(rows, |row| row.reserve_price),
            &amounts(rows, |row| row.available_options),
            &amounts(rows, |row| row.starting_liquidity),
            &amounts(rows, |row| row.queued_liquidity),
            &amounts(rows, |row| row.sold_options),
            &amounts(rows, |row| row.clearing_price),
            &amounts(rows, |row| row.premiums),
            &amounts(rows, |row| row.unsold_liquidity),
            &amounts(rows, |row| row.settlement_price),
            &amounts(rows, |row| row.payout_per_option),
            &amounts(rows, |row| row.remaining_liquidity),
        ];
        at.write(client, &self.put_rounds, rows.len(), &columns).await
    }

    async fn put_queue<C: GenericClient + Sync>(
        &self,
        client: &C,
        at: &At<'_>,
        rows: &[QueuedRow],
    ) -> Result<(), StoreError> {
        let columns: [Parameter<'_>; 5] = [
            &texts(rows.iter().map(|row| &row.vault_address)),
            &texts(rows.iter().map(|row| &row.round_address)),
            &texts(rows.iter().map(|row| &row.address)),
            &amounts(rows, |row| row.bps),
            &amounts(rows, |row| row.queued_liquidity),
        ];
        at.write(client, &self.put_queue, rows.len(), &columns).await
    }

    async fn put_buyers<C: GenericClient + Sync>(
        &self,
        client: &C,
        at: &At<'_>,
        rows: &[BuyerRow],
    ) -> Result<(), StoreError> {
        let columns: [Parameter<'_>; 7] = [
            &texts(rows.iter().map(|row| &row.vault_address)),
            &texts(rows.iter().map(|row| &row.round_address)),
            &texts(rows.iter().map(|row| &row.address)),
            &rows.iter().map(|row| row.has_minted).collect::<Vec<_>>(),
            &rows.iter().map(|row| row.has_refunded).collect::<Vec<_>>(),
            &amounts(rows, |row| row.mintable_options),
            &amounts(rows, |row| row.refundable_amount),
        ];
        at.write(client, &self.put_buyers, rows.len(), &columns).await
    }

    async fn put_bids<C: GenericClient + Sync>(
        &self,
        client: &C,
        at: &At<'_>,
        rows: &[BidRow],
    ) -> Result<(), StoreError> {
        let columns: [Parameter<'_>; 7] = [
            &texts(rows.iter().map(|row| &row.vault_address)),
            &texts(rows.iter().map(|row| &row.round_address)),
            &texts(rows.iter().map(|row| &row.bid_id)),
            &texts(rows.iter().map(|row| &row.buyer_address)),
            &rows.iter().map(|row| whole(row.tree_nonce)).collect::<Vec<_>>(),
            &amounts(rows, |row| row.amount),
            &amounts(rows, |row| row.price),
        ];
        at.write(client, &self.put_bids, rows.len(), &columns).await
    }
}

fn said_at_deployment(row: &VaultRow) -> Option<&VaultParameters> {
    row.parameters.as_ref()
}

/// Turns a row of one of the tables into what it holds.
type Read = fn(&SqlRow) -> Result<Row, StoreError>;

type Parameter<'a> = &'a (dyn ToSql + Sync);

/// The block that is written, as parameters.
struct At<'a> {
    chain: i64,
    height: i64,
    hash: &'a str,
}

impl At<'_> {
    async fn write<C: GenericClient + Sync>(
        &self,
        client: &C,
        statement: &Statement,
        rows: usize,
        columns: &[Parameter<'_>],
    ) -> Result<(), StoreError> {
        if rows > 0 {
            let block: [Parameter<'_>; 3] = [&self.chain, &self.height, &self.hash];
            let parameters: Vec<Parameter<'_>> = block.into_iter().chain(columns.iter().copied()).collect();
            client.execute(statement, &parameters).await?;
        }
        Ok(())
    }
}

fn texts<'a>(from: impl IntoIterator<Item = &'a Text>) -> Vec<&'a str> {
    from.into_iter().map(|text| &**text).collect()
}

fn pairs<'a>(from: impl IntoIterator<Item = &'a (Text, Text)> + Copy) -> [Vec<&'a str>; 2] {
    [texts(from.into_iter().map(|(first, _)| first)), texts(from.into_iter().map(|(_, second)| second))]
}

fn amounts<R>(rows: &[R], read: fn(&R) -> Amount) -> Vec<Numeric> {
    rows.iter().map(|row| Numeric::from(read(row))).collect()
}

/// A u64 of a contract, which has more bits than a `bigint`.
pub(in crate::store) fn whole(value: u64) -> Numeric {
    Numeric::from(Amount::from(value))
}

fn signed(value: i128) -> Option<Numeric> {
    Delta::from_parts(value < 0, Uint::from(value.unsigned_abs())).map(Numeric)
}

fn nonsense(column: &str, what: &str) -> StoreError {
    StoreError::Nonsense { what: format!("{column} {what}") }
}

fn text(row: &SqlRow, column: &str) -> Result<Text, StoreError> {
    Ok(row.try_get::<_, &str>(column)?.into())
}

fn text_or_null(row: &SqlRow, column: &str) -> Result<Option<Text>, StoreError> {
    Ok(row.try_get::<_, Option<&str>>(column)?.map(Text::from))
}

fn word<T>(row: &SqlRow, column: &str, parse: fn(&str) -> Option<T>) -> Result<T, StoreError> {
    let word = row.try_get::<_, &str>(column)?;
    parse(word).ok_or_else(|| nonsense(column, &format!("is {word:?}")))
}

fn number_or_null(row: &SqlRow, column: &str) -> Result<Option<u64>, StoreError> {
    let number = row.try_get::<_, Option<Numeric>>(column)?;
    number
        .map(|Numeric(n)| u64::try_from(n.magnitude()).ok().filter(|_| !n.is_negative()))
        .map(|n| n.ok_or_else(|| nonsense(column, "is not a whole number of 64 bits")))
        .transpose()
}

fn number(row: &SqlRow, column: &str) -> Result<u64, StoreError> {
    number_or_null(row, column)?.ok_or_else(|| nonsense(column, "is null"))
}

fn amount(row: &SqlRow, column: &str) -> Result<Amount, StoreError> {
    let Numeric(value) = row.try_get(column)?;
    let amount = Amount::checked_from_limbs_slice(value.magnitude().as_limbs());
    amount.filter(|_| !value.is_negative()).ok_or_else(|| nonsense(column, "is not a 256-bit amount"))
}

fn signed_number(row: &SqlRow, column: &str) -> Result<i128, StoreError> {
    let Numeric(value) = row.try_get(column)?;
    let number = u128::try_from(value.magnitude()).ok().and_then(|size| {
        if value.is_negative() { 0i128.checked_sub_unsigned(size) } else { i128::try_from(size).ok() }
    });
    number.ok_or_else(|| nonsense(column, "has more than 128 bits"))
}

pub(in crate::store) fn vault_row(row: &SqlRow) -> Result<VaultRow, StoreError> {
    // All that a deployment says is there, or nothing of it.
    let parameters = match text_or_null(row, "fossil_client_address")? {
        None => None,
        Some(fossil_client_address) => Some(VaultParameters {
            fossil_client_address,
            eth_address: text(row, "eth_address")?,
            option_round_class_hash: text(row, "option_round_class_hash")?,
            alpha: amount(row, "alpha")?,
            strike_level: signed_number(row, "strike_level")?,
            round_transition_period: number(row, "round_transition_period")?,
            auction_duration: number(row, "auction_duration")?,
            round_duration: number(row, "round_duration")?,
        }),
    };
    Ok(VaultRow {
        address: text(row, "address")?,
        layout: word(row, "layout", Layout::parse)?,
        unlocked_balance: amount(row, "unlocked_balance")?,
        locked_balance: amount(row, "locked_balance")?,
        stashed_balance: amount(row, "stashed_balance")?,
        current_round: number_or_null(row, "current_round")?,
        current_round_address: text_or_null(row, "current_round_address")?,
        parameters,
        deployment_date: row.try_get("deployment_date")?,
    })
}

pub(in crate::store) fn provider_row(row: &SqlRow) -> Result<ProviderRow, StoreError> {
    Ok(ProviderRow {
        vault_address: text(row, "vault_address")?,
        address: text(row, "address")?,
        unlocked_balance: amount(row, "unlocked_balance")?,
        locked_balance: amount(row, "locked_balance")?,
        stashed_balance: amount(row, "stashed_balance")?,
        start_liquidity: amount(row, "start_liquidity")?,
    })
}

pub(in crate::store) fn round_row(row: &SqlRow) -> Result<RoundRow, StoreError> {
    Ok(RoundRow {
        address: text(row, "address")?,
        vault_address: text(row, "vault_address")?,
        round_id: number(row, "round_id")?,
        state: word(row, "state", RoundState::parse)?,
        start_date: number(row, "start_date")?,
        end_date: number(row, "end_date")?,
        settlement_date: number(row, "settlement_date")?,
        deployment_date: row.try_get("deployment_date")?,
        strike_price: amount(row, "strike_price")?,
        cap_level: amount(row, "cap_level")?,
        reserve_price: amount(row, "reserve_price")?,
        available_options: amount(row, "available_options")?,
        starting_liquidity: amount(row, "starting_liquidity")?,
        queued_liquidity: amount(row, "queued_liquidity")?,
        sold_options: amount(row, "sold_options")?,
        clearing_price: amount(row, "clearing_price")?,
        premiums: amount(row, "premiums")?,
        unsold_liquidity: amount(row, "unsold_liquidity")?,
        settlement_price: amount(row, "settlement_price")?,
        payout_per_option: amount(row, "payout_per_option")?,
        remaining_liquidity: amount(row, "remaining_liquidity")?,
    })
}

pub(in crate::store) fn queued_row(row: &SqlRow) -> Result<QueuedRow, StoreError> {
    Ok(QueuedRow {
        vault_address: text(row, "vault_address")?,
        round_address: text(row, "round_address")?,
        address: text(row, "address")?,
        bps: amount(row, "bps")?,
        queued_liquidity: amount(row, "queued_liquidity")?,
    })
}

pub(in crate::store) fn buyer_row(row: &SqlRow) -> Result<BuyerRow, StoreError> {
    Ok(BuyerRow {
        vault_address: text(row, "vault_address")?,
        round_address: text(row, "round_address")?,
        address: text(row, "address")?,
        has_minted: row.try_get("has_minted")?,
        has_refunded: row.try_get("has_refunded")?,
        mintable_options: amount(row, "mintable_options")?,
        refundable_amount: amount(row, "refundable_amount")?,
    })
}

pub(in crate::store) fn bid_row(row: &SqlRow) -> Result<BidRow, StoreError> {
    Ok(BidRow {
        vault_address: text(row, "vault_address")?,
        round_address: text(row, "round_address")?,
        bid_id: text(row, "bid_id")?,
        buyer_address: text(row, "buyer_address")?,
        tree_nonce: number(row, "tree_nonce")?,
        amount: amount(row, "amount")?,
        price: amount(row, "price")?,
    })
}
