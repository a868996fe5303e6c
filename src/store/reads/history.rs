//! Transfer history, newest first, a page at a time.
//!
//! The event tables have their primary key, the order of application, and nothing else (any index by address costs
//! four times of load speed). So the whole history is a walk back along that key, and the history of an account takes
//! its heights from `balance_history`, which is keyed by (balance, height): the newest heights of each of the
//! account's tokens, merged, then the events of those blocks. A page costs the lookups of its own rows and one or two
//! for each token of the chain; it does not grow with the length of the chain.

use std::collections::BTreeSet;

use tokio_postgres::Row;

use crate::chain::Kind;

use super::{ChainState, Parameter, Snapshot, StoreError};

/// Rows looked at for one page before a filter that finds too little gives up and hands out a cursor.
const LOOK_AT_MOST: usize = 50_000;

/// A place in the order of application; a page holds what lies before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Block height.
    pub height: i64,
    /// Place of the transaction in the block.
    pub tx_index: i64,
    /// Place of the event.
    pub event_index: i64,
}

impl Position {
    /// Before every event of this height.
    pub fn start_of(height: i64) -> Position {
        Position { height, tx_index: 0, event_index: 0 }
    }
}

/// A token event with the block it is in.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Its place.
    pub position: Position,
    /// The token.
    pub token: String,
    /// Who gave; none for a mint.
    pub from: Option<String>,
    /// Who received; none for a burn.
    pub to: Option<String>,
    /// Base units as decimal digits.
    pub amount: String,
    /// `mint`, `burn` or `transfer`.
    pub kind: String,
    /// Hash of its block.
    pub block_hash: String,
    /// Time of its block, as the chain says.
    pub time: Option<jiff::Timestamp>,
    /// Hash of its transaction, if asked for and known.
    pub tx_hash: Option<String>,
}

/// Which events to show.
#[derive(Debug, Clone)]
pub struct HistoryRequest<'a> {
    /// Only those of this account.
    pub address: Option<&'a str>,
    /// Only these kinds; empty: all.
    pub kinds: &'a [String],
    /// With the hashes of their transactions.
    pub with_tx_hash: bool,
    /// Only those before this place.
    pub before: Position,
    /// At most so many.
    pub limit: usize,
}

/// Up to `limit` events, and where the rest begins.
#[derive(Debug, Clone, Default)]
pub struct HistoryPage {
    /// Newest first.
    pub transfers: Vec<Transfer>,
    /// More may lie before this place. The block hash, where one is known, lets a later page see that it was undone.
    pub next: Option<(Position, Option<String>)>,
    /// More lies before this page, but the history of the account was pruned there.
    pub pruned: bool,
}

/// A page being filled.
struct Filling<'a> {
    kind: Kind,
    request: &'a HistoryRequest<'a>,
    transfers: Vec<Transfer>,
    /// The last row looked at, shown or not.
    last: Option<(Position, Option<String>)>,
    looked_at: usize,
}

impl<'a> Filling<'a> {
    fn new(kind: Kind, request: &'a HistoryRequest<'a>) -> Filling<'a> {
        Filling { kind, request, transfers: Vec::new(), last: None, looked_at: 0 }
    }

    /// One more than the page holds tells whether there are more.
    fn missing(&self) -> usize {
        (self.request.limit + 1).saturating_sub(self.transfers.len())
    }

    fn take(&mut self, row: &Row) -> Result<(), StoreError> {
        self.looked_at += 1;
        let position = Position {
            height: row.try_get("height")?,
            tx_index: row.try_get("tx_index")?,
            event_index: row.try_get("event_index")?,
        };
        let block_hash: Option<String> = row.try_get("block_hash")?;
        self.last = Some((position, block_hash.clone()));
        // Without its block an event does not count.
        let Some(block_hash) = block_hash else { return Ok(()) };
        let transfer = Transfer {
            position,
            token: row.try_get("token")?,
            from: row.try_get("from_address")?,
            to: row.try_get("to_address")?,
            amount: row.try_get("amount")?,
            kind: row.try_get("kind")?,
            block_hash,
            time: row.try_get("time")?,
            tx_hash: row.try_get("tx_hash")?,
        };
        let asked_for = self.request.kinds.is_empty() || self.request.kinds.contains(&transfer.kind);
        if asked_for && self.moved_balances(&transfer) {
            self.transfers.push(transfer);
        }
        Ok(())
    }

    /// Movements that no account of this chain can have made were refused (`rejected_events`): no balance holds them.
    fn moved_balances(&self, transfer: &Transfer) -> bool {
        self.kind.is_token(&transfer.token)
            && [&transfer.from, &transfer.to].into_iter().flatten().all(|address| self.kind.is_address(address))
    }

    /// The page is full: cut the one too many, and go on after the last one shown.
    fn full(mut self) -> HistoryPage {
        self.transfers.truncate(self.request.limit);
        let next = self.transfers.last().map(|last| (last.position, Some(last.block_hash.clone())));
        HistoryPage { transfers: self.transfers, next, pruned: false }
    }

    /// Nothing lies before this page.
    fn end(self) -> HistoryPage {
        HistoryPage { transfers: self.transfers, next: None, pruned: false }
    }

    /// Looked long enough: a short page, and go on from `position`.
    fn pause(self, position: Position) -> HistoryPage {
        let next = match self.last {
            Some((last, hash)) if last == position => (last, hash),
            _ => (position, None),
        };
        HistoryPage { transfers: self.transfers, next: Some(next), pruned: false }
    }
}

impl Snapshot<'_> {
    /// One page of the events of applied blocks up to `height` (inclusive), newest first.
    ///
    /// # Errors
    /// Whatever Postgres says.
    pub async fn history(
        &self,
        chain: &ChainState,
        height: i64,
        request: &HistoryRequest<'_>,
    ) -> Result<HistoryPage, StoreError> {
        let Some(through) = chain.through_height else { return Ok(HistoryPage::default()) };
        let top = Position::start_of(height.min(through).saturating_add(1));
        let before = top.min(request.before);
        match request.address {
            Some(address) => self.history_of_account(chain, address, before, request).await,
            None => self.history_of_all(chain, before, request).await,
        }
    }

    async fn history_of_all(
        &self,
        chain: &ChainState,
        mut before: Position,
        request: &HistoryRequest<'_>,
    ) -> Result<HistoryPage, StoreError> {
        let mut filling = Filling::new(chain.kind, request);
        let mut low = chain.window_from();
        loop {
            // What is to be applied again below the window is hidden as a whole: stepped over, not walked through.
            if before <= Position::start_of(low) {
                low = i64::MIN;
                before = before.min(Position::start_of(chain.window_from().min(chain.settled_below())));
            }
            let wanted = filling.missing() as i64;
            let parameters: &[&dyn Parameter] = &[
                &chain.chain_id,
                &before.height,
                &before.tx_index,
                &before.event_index,
                &low,
                &chain.settled_below(),
                &request.with_tx_hash,
                &wanted,
            ];
            let rows = self.rows(include_str!("../../../sql/queries/history.sql"), parameters).await?;
            for row in &rows {
                filling.take(row)?;
            }
            if filling.missing() == 0 {
                return Ok(filling.full());
            }
            if rows.len() < wanted as usize {
                if low == i64::MIN {
                    return Ok(filling.end());
                }
                before = Position::start_of(low);
            } else if let Some((last, _)) = &filling.last {
                before = *last;
            }
            if filling.looked_at >= LOOK_AT_MOST {
                return Ok(filling.pause(before));
            }
        }
    }

    async fn history_of_account(
        &self,
        chain: &ChainState,
        address: &str,
        mut before: Position,
        request: &HistoryRequest<'_>,
    ) -> Result<HistoryPage, StoreError> {
        let mut filling = Filling::new(chain.kind, request);
        let rows =
            self.rows(include_str!("../../../sql/queries/tokens_of_account.sql"), &[&chain.chain_id, &address]).await?;
        let tokens: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        if tokens.is_empty() {
            return Ok(filling.end());
        }
        // Per token enough that one round mostly fills the page, without reading a page from each of many tokens.
        let per_token = (4 * (request.limit + 1) / tokens.len()).clamp(16, request.limit.max(15) + 1) as i64;
        let mut seen_to_its_start = vec![false; tokens.len()];
        loop {
            let up_to = last_height(before);
            let sql = include_str!("../../../sql/queries/heights_of_account.sql");
            let rows = self.rows(sql, &[&chain.chain_id, &tokens, &address, &up_to, &per_token]).await?;
            let heights = Heights::merge(&rows, tokens.len(), per_token as usize, &mut seen_to_its_start)?;
            let newest_first: Vec<i64> = heights.known.iter().rev().copied().collect();
            let wanted = filling.missing() as i64;
            let parameters: &[&dyn Parameter] = &[
                &chain.chain_id,
                &newest_first,
                &address,
                &before.height,
                &before.tx_index,
                &before.event_index,
                &chain.settled_below(),
                &request.with_tx_hash,
                &wanted,
            ];
            let rows = self.rows(include_str!("../../../sql/queries/history_of_account.sql"), parameters).await?;
            for row in &rows {
                filling.take(row)?;
            }
            filling.looked_at += newest_first.len();
            if filling.missing() == 0 {
                return Ok(filling.full());
            }
            before = match (rows.len() < wanted as usize, heights.more_below, &filling.last) {
                // These blocks held more events of the account, of a kind that is not asked for.
                (false, _, Some((last, _))) => *last,
                (_, Some(floor), _) => Position::start_of(floor),
                (_, None, _) => break,
            };
            if filling.looked_at >= LOOK_AT_MOST {
                return Ok(filling.pause(before));
            }
        }
        let pruned = self.began_before(chain, address, &tokens, &mut seen_to_its_start, before).await?;
        Ok(HistoryPage { pruned, ..filling.end() })
    }

    /// Whether the account had events that the history kept no longer shows: in some token its first change was neither
    /// seen on this page nor lies above it.
    async fn began_before(
        &self,
        chain: &ChainState,
        address: &str,
        tokens: &[String],
        seen_to_its_start: &mut [bool],
        before: Position,
    ) -> Result<bool, StoreError> {
        if seen_to_its_start.iter().all(|seen| *seen) {
            return Ok(false);
        }
        let sql = include_str!("../../../sql/queries/account_began_above.sql");
        let tokens = &tokens;
        for row in self.rows(sql, &[&chain.chain_id, tokens, &address, &last_height(before)]).await? {
            if let Some(seen) = seen_to_its_start.get_mut((row.try_get::<_, i64>("place")? - 1) as usize) {
                *seen = true;
            }
        }
        Ok(!seen_to_its_start.iter().all(|seen| *seen))
    }
}

/// The highest height that has a place before this one.
fn last_height(before: Position) -> i64 {
    if before > Position::start_of(before.height) { before.height } else { before.height.saturating_sub(1) }
}

/// The heights at which an account changed, as far down as they are known for all of its tokens.
struct Heights {
    known: BTreeSet<i64>,
    /// Below this height some token may have changes that were not read.
    more_below: Option<i64>,
}

impl Heights {
    fn merge(
        rows: &[Row],
        tokens: usize,
        per_token: usize,
        seen_to_its_start: &mut [bool],
    ) -> Result<Heights, StoreError> {
        let mut known = BTreeSet::new();
        let mut counts = vec![(0usize, i64::MAX); tokens];
        for row in rows {
            let place = (row.try_get::<_, i64>("place")? - 1) as usize;
            let height: i64 = row.try_get("height")?;
            known.insert(height);
            if let Some((count, lowest)) = counts.get_mut(place) {
                *count += 1;
                *lowest = height.min(*lowest);
            }
            if let Some(seen) = seen_to_its_start.get_mut(place) {
                *seen |= row.try_get::<_, bool>("first")?;
            }
        }
        let more_below = counts.iter().filter(|(count, _)| *count >= per_token).map(|(_, lowest)| *lowest).max();
        if let Some(floor) = more_below {
            known = known.split_off(&floor);
        }
        Ok(Heights { known, more_below })
    }
}
