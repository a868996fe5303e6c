//! The statements of the option vaults: loading the rows that events need, and writing what became of them.

use std::collections::{BTreeMap, BTreeSet};

use ruint::Uint;

use crate::chain::delta::Delta;
use crate::chain::{Amount, ChainId, Height, Text};
use crate::store::numeric::Numeric;
use crate::store::{Row as SqlRow, Session, StoreError, ToSql};

use super::directory::Registered;
use super::rows::{
    BidRow, BuyerRow, Changes, Layout, ProviderRow, QueuedRow, RoundRow, RoundState, Row, VaultParameters, VaultRow,
    Wanted, Written,
};

/// The vaults and rounds at some addresses, the rounds' vaults, and what people registered of them.
#[derive(Debug, Clone, Default)]
pub struct Named {
    /// Of `vaults` and `option_rounds`.
    pub rows: Vec<Row>,
    /// Of `vault_registry`, as far as it counts.
    pub registered: BTreeMap<Text, Registered>,
}

/// Reads what stands at these addresses.
///
/// # Errors
/// Whatever Postgres says.
pub async fn named(session: Session<'_>, chain: ChainId, addresses: &BTreeSet<Text>) -> Result<Named, StoreError> {
    let addresses = texts(addresses);
    let (nobody, nothing): (Vec<&str>, Vec<Numeric>) = Default::default();
    let rounds: [Parameter<'_>; 4] = [&chain.0, &addresses, &nobody, &nothing];
    let vaults: [Parameter<'_>; 2] = [&chain.0, &addresses];
    let (rounds, vaults) = tokio::try_join!(
        session.query(include_str!("../../../sql/queries/vault_rounds_wanted.sql"), &rounds),
        session.query(include_str!("../../../sql/queries/vaults_named.sql"), &vaults),
    )?;
    let mut named = Named::default();
    for row in &rounds {
        named.rows.push(Row::Round(round_row(row)?));
    }
    for row in &vaults {
        let address = text(row, "named")?;
        if text_or_null(row, "address")?.is_some() {
            named.rows.push(Row::Vault(vault_row(row)?));
        }
        if text_or_null(row, "registered_layout")?.is_some() {
            named.registered.insert(address, registered(row)?);
        }
    }
    Ok(named)
}

/// All vaults that people registered on a chain, as far as they count.
///
/// # Errors
/// Whatever Postgres says.
pub async fn all_registered(session: Session<'_>, chain: ChainId) -> Result<BTreeMap<Text, Registered>, StoreError> {
    let rows = session.query(include_str!("../../../sql/queries/vaults_that_count.sql"), &[&chain.0]).await?;
    rows.iter().map(|row| Ok((text(row, "address")?, registered(row)?))).collect()
}

fn registered(row: &SqlRow) -> Result<Registered, StoreError> {
    let from_height = row.try_get::<_, Option<i64>>("from_height")?.map(Height::try_from).transpose();
    Ok(Registered {
        layout: word(row, "registered_layout", Layout::parse)?,
        from_height: from_height.map_err(|_| nonsense("from_height", "is negative"))?,
    })
}

/// The rows that exist of those wanted; one may come twice. All statements that are needed are sent at once.
///
/// # Errors
/// Whatever Postgres says.
pub async fn load(session: Session<'_>, chain: ChainId, wanted: &Wanted) -> Result<Vec<Row>, StoreError> {
    let chain = chain.0;
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
    let providers_of: [Parameter<'_>; 4] = [&chain, &whole_vaults, &provider_vaults, &providers];
    let rounds_of: [Parameter<'_>; 4] = [&chain, &rounds, &number_vaults, &numbers];
    let queue_of: [Parameter<'_>; 5] = [&chain, &queue_rounds, &queue_vaults, &queue_numbers, &queue_accounts];
    let buyers_of: [Parameter<'_>; 4] = [&chain, &whole_rounds, &buyer_rounds, &buyers];
    let bids_of: [Parameter<'_>; 4] = [&chain, &whole_rounds, &bid_rounds, &bids];
    let sql = [
        include_str!("../../../sql/queries/vault_providers_wanted.sql"),
        include_str!("../../../sql/queries/vault_rounds_wanted.sql"),
        include_str!("../../../sql/queries/vault_queue_wanted.sql"),
        include_str!("../../../sql/queries/vault_buyers_wanted.sql"),
        include_str!("../../../sql/queries/vault_bids_wanted.sql"),
    ];
    let keys = [
        whole_vaults.len() + providers.len(),
        rounds.len() + numbers.len(),
        queue_rounds.len() + queue_vaults.len(),
        whole_rounds.len() + buyers.len(),
        whole_rounds.len() + bids.len(),
    ];
    let (providers, rounds, queue, buyers, bids) = tokio::try_join!(
        read(session, sql[0], keys[0], &providers_of, |row| provider_row(row).map(Row::Provider)),
        read(session, sql[1], keys[1], &rounds_of, |row| round_row(row).map(Row::Round)),
        read(session, sql[2], keys[2], &queue_of, |row| queued_row(row).map(Row::Queued)),
        read(session, sql[3], keys[3], &buyers_of, |row| buyer_row(row).map(Row::Buyer)),
        read(session, sql[4], keys[4], &bids_of, |row| bid_row(row).map(Row::Bid)),
    )?;
    Ok([providers, rounds, queue, buyers, bids].concat())
}

/// The rows of a statement, which is sent if there are keys to look for.
async fn read(
    session: Session<'_>,
    sql: &'static str,
    keys: usize,
    parameters: &[Parameter<'_>],
    read: fn(&SqlRow) -> Result<Row, StoreError>,
) -> Result<Vec<Row>, StoreError> {
    if keys == 0 {
        return Ok(Vec::new());
    }
    session.query(sql, parameters).await?.iter().map(read).collect()
}

/// Writes the rows that blocks left, with their history, in the transaction that moves the checkpoint. All statements that
/// are needed are sent at once.
///
/// # Errors
/// Whatever Postgres says.
pub async fn put(session: Session<'_>, chain: ChainId, changes: &Changes) -> Result<(), StoreError> {
    let chain = chain.0;
    tokio::try_join!(
        put_vaults(session, chain, &changes.vaults, &changes.vault_history),
        put_providers(session, chain, &changes.providers, &changes.provider_history),
        put_rounds(session, chain, &changes.rounds),
        put_queue(session, chain, &changes.queued),
        put_buyers(session, chain, &changes.buyers),
        put_bids(session, chain, &changes.bids),
    )?;
    Ok(())
}

async fn put_vaults(
    session: Session<'_>,
    chain: i64,
    rows: &[Written<VaultRow>],
    history: &[Written<VaultRow>],
) -> Result<(), StoreError> {
    let felts = |read: fn(&VaultParameters) -> &Text| -> Vec<Option<&str>> {
        rows.iter().map(|w| w.row.parameters.as_ref().map(|p| &**read(p))).collect()
    };
    let durations = |read: fn(&VaultParameters) -> u64| -> Vec<Option<Numeric>> {
        rows.iter().map(|w| w.row.parameters.as_ref().map(|p| whole(read(p)))).collect()
    };
    let alphas: Vec<Option<Numeric>> = rows.iter().map(|w| w.row.parameters.as_ref().map(|p| p.alpha.into())).collect();
    let strikes: Vec<Option<Numeric>> =
        rows.iter().map(|w| w.row.parameters.as_ref().and_then(|p| signed(p.strike_level))).collect();
    let (heights, hashes) = blocks(history);
    let columns: [Parameter<'_>; 22] = [
        &texts(rows.iter().map(|w| &w.row.address)),
        &rows.iter().map(|w| w.row.layout.as_str()).collect::<Vec<_>>(),
        &amounts(rows, |row| row.unlocked_balance),
        &amounts(rows, |row| row.locked_balance),
        &amounts(rows, |row| row.stashed_balance),
        &rows.iter().map(|w| w.row.current_round.map(whole)).collect::<Vec<_>>(),
        &rows.iter().map(|w| w.row.current_round_address.as_deref()).collect::<Vec<_>>(),
        &felts(|p| &p.fossil_client_address),
        &felts(|p| &p.eth_address),
        &felts(|p| &p.option_round_class_hash),
        &alphas,
        &strikes,
        &durations(|p| p.round_transition_period),
        &durations(|p| p.auction_duration),
        &durations(|p| p.round_duration),
        &rows.iter().map(|w| w.row.deployment_date).collect::<Vec<_>>(),
        &heights,
        &hashes,
        &texts(history.iter().map(|w| &w.row.address)),
        &amounts(history, |row| row.unlocked_balance),
        &amounts(history, |row| row.locked_balance),
        &amounts(history, |row| row.stashed_balance),
    ];
    let sql = include_str!("../../../sql/queries/put_vaults.sql");
    write(session, sql, chain, rows, &columns).await
}

async fn put_providers(
    session: Session<'_>,
    chain: i64,
    rows: &[Written<ProviderRow>],
    history: &[Written<ProviderRow>],
) -> Result<(), StoreError> {
    let (heights, hashes) = blocks(history);
    let columns: [Parameter<'_>; 13] = [
        &texts(rows.iter().map(|w| &w.row.vault_address)),
        &texts(rows.iter().map(|w| &w.row.address)),
        &amounts(rows, |row| row.unlocked_balance),
        &amounts(rows, |row| row.locked_balance),
        &amounts(rows, |row| row.stashed_balance),
        &amounts(rows, |row| row.start_liquidity),
        &heights,
        &hashes,
        &texts(history.iter().map(|w| &w.row.vault_address)),
        &texts(history.iter().map(|w| &w.row.address)),
        &amounts(history, |row| row.unlocked_balance),
        &amounts(history, |row| row.locked_balance),
        &amounts(history, |row| row.stashed_balance),
    ];
    let sql = include_str!("../../../sql/queries/put_vault_providers.sql");
    write(session, sql, chain, rows, &columns).await
}

async fn put_rounds(session: Session<'_>, chain: i64, rows: &[Written<RoundRow>]) -> Result<(), StoreError> {
    let numbers = |read: fn(&RoundRow) -> u64| -> Vec<Numeric> { rows.iter().map(|w| whole(read(&w.row))).collect() };
    let columns: [Parameter<'_>; 21] = [
        &texts(rows.iter().map(|w| &w.row.address)),
        &texts(rows.iter().map(|w| &w.row.vault_address)),
        &numbers(|row| row.round_id),
        &rows.iter().map(|w| w.row.state.as_str()).collect::<Vec<_>>(),
        &numbers(|row| row.start_date),
        &numbers(|row| row.end_date),
        &numbers(|row| row.settlement_date),
        &rows.iter().map(|w| w.row.deployment_date).collect::<Vec<_>>(),
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
    let sql = include_str!("../../../sql/queries/put_vault_rounds.sql");
    write(session, sql, chain, rows, &columns).await
}

async fn put_queue(session: Session<'_>, chain: i64, rows: &[Written<QueuedRow>]) -> Result<(), StoreError> {
    let columns: [Parameter<'_>; 5] = [
        &texts(rows.iter().map(|w| &w.row.vault_address)),
        &texts(rows.iter().map(|w| &w.row.round_address)),
        &texts(rows.iter().map(|w| &w.row.address)),
        &amounts(rows, |row| row.bps),
        &amounts(rows, |row| row.queued_liquidity),
    ];
    let sql = include_str!("../../../sql/queries/put_vault_queue.sql");
    write(session, sql, chain, rows, &columns).await
}

async fn put_buyers(session: Session<'_>, chain: i64, rows: &[Written<BuyerRow>]) -> Result<(), StoreError> {
    let columns: [Parameter<'_>; 7] = [
        &texts(rows.iter().map(|w| &w.row.vault_address)),
        &texts(rows.iter().map(|w| &w.row.round_address)),
        &texts(rows.iter().map(|w| &w.row.address)),
        &rows.iter().map(|w| w.row.has_minted).collect::<Vec<_>>(),
        &rows.iter().map(|w| w.row.has_refunded).collect::<Vec<_>>(),
        &amounts(rows, |row| row.mintable_options),
        &amounts(rows, |row| row.refundable_amount),
    ];
    let sql = include_str!("../../../sql/queries/put_vault_buyers.sql");
    write(session, sql, chain, rows, &columns).await
}

async fn put_bids(session: Session<'_>, chain: i64, rows: &[Written<BidRow>]) -> Result<(), StoreError> {
    let columns: [Parameter<'_>; 7] = [
        &texts(rows.iter().map(|w| &w.row.vault_address)),
        &texts(rows.iter().map(|w| &w.row.round_address)),
        &texts(rows.iter().map(|w| &w.row.bid_id)),
        &texts(rows.iter().map(|w| &w.row.buyer_address)),
        &rows.iter().map(|w| whole(w.row.tree_nonce)).collect::<Vec<_>>(),
        &amounts(rows, |row| row.amount),
        &amounts(rows, |row| row.price),
    ];
    let sql = include_str!("../../../sql/queries/put_vault_bids.sql");
    write(session, sql, chain, rows, &columns).await
}

type Parameter<'a> = &'a (dyn ToSql + Sync);

/// Sends rows with their blocks ($1 to $3: chain, heights, hashes), if there are any.
async fn write<R>(
    session: Session<'_>,
    sql: &'static str,
    chain: i64,
    rows: &[Written<R>],
    columns: &[Parameter<'_>],
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (heights, hashes) = blocks(rows);
    let place: [Parameter<'_>; 3] = [&chain, &heights, &hashes];
    let parameters: Vec<Parameter<'_>> = place.into_iter().chain(columns.iter().copied()).collect();
    session.execute(sql, &parameters).await?;
    Ok(())
}

fn blocks<R>(rows: &[Written<R>]) -> (Vec<i64>, Vec<&str>) {
    rows.iter().map(|w| (w.block.height.to_sql(), w.block.hash.as_str())).unzip()
}

fn texts<'a>(from: impl IntoIterator<Item = &'a Text>) -> Vec<&'a str> {
    from.into_iter().map(|text| &**text).collect()
}

fn pairs<'a>(from: impl IntoIterator<Item = &'a (Text, Text)> + Copy) -> [Vec<&'a str>; 2] {
    [texts(from.into_iter().map(|(first, _)| first)), texts(from.into_iter().map(|(_, second)| second))]
}

fn amounts<R>(rows: &[Written<R>], read: fn(&R) -> Amount) -> Vec<Numeric> {
    rows.iter().map(|w| Numeric::from(read(&w.row))).collect()
}

/// A u64 of a contract, which has more bits than a `bigint`.
pub(super) fn whole(value: u64) -> Numeric {
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

pub(super) fn vault_row(row: &SqlRow) -> Result<VaultRow, StoreError> {
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

pub(super) fn provider_row(row: &SqlRow) -> Result<ProviderRow, StoreError> {
    Ok(ProviderRow {
        vault_address: text(row, "vault_address")?,
        address: text(row, "address")?,
        unlocked_balance: amount(row, "unlocked_balance")?,
        locked_balance: amount(row, "locked_balance")?,
        stashed_balance: amount(row, "stashed_balance")?,
        start_liquidity: amount(row, "start_liquidity")?,
    })
}

pub(super) fn round_row(row: &SqlRow) -> Result<RoundRow, StoreError> {
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

pub(super) fn queued_row(row: &SqlRow) -> Result<QueuedRow, StoreError> {
    Ok(QueuedRow {
        vault_address: text(row, "vault_address")?,
        round_address: text(row, "round_address")?,
        address: text(row, "address")?,
        bps: amount(row, "bps")?,
        queued_liquidity: amount(row, "queued_liquidity")?,
    })
}

pub(super) fn buyer_row(row: &SqlRow) -> Result<BuyerRow, StoreError> {
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

pub(super) fn bid_row(row: &SqlRow) -> Result<BidRow, StoreError> {
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
