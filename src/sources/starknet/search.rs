//! Which blocks hold events of some contracts: `starknet_getEvents`, page by page.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::decode::Wanted;
use super::wire;
use crate::chain::Height;
use crate::chain::felt::Felt;
use crate::sources::SourceError;
use crate::sources::rpc::endpoint::{Call, Endpoint};

/// The method that is asked.
pub(super) const GET_EVENTS: &str = "starknet_getEvents";
/// Blocks that are read with receipts for one answer of `events_of`.
pub(super) const BLOCKS_AT_ONCE: usize = 64;
/// Events asked for at once; what most nodes give at most.
const PAGE: u64 = 1_000;
/// Pages in a row that may come without an event, where the range does not bound them: some nodes look at so many blocks
/// and no more for each page.
const MOST_EMPTY: u64 = 1_000;
/// The specification's error for more than a node gives at once.
const PAGE_TOO_BIG: i64 = 31;

/// Where events are.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// The blocks that hold any, with their hashes.
    pub(super) blocks: BTreeMap<Height, Felt>,
    /// How many there are of each kind.
    pub(super) counts: BTreeMap<(Height, Wanted), u64>,
    /// Nothing up to here is missing.
    pub(super) through: Height,
}

/// A question with more pages to come.
struct Open<'w> {
    wanted: &'w Wanted,
    token: Option<String>,
    tokens: HashSet<String>,
    heights: usize,
    last: Option<Height>,
    /// Pages without an event since the last one that held any.
    empty: u64,
}

/// The blocks at these heights that hold such events. With `at_most`, it may stop at a height below the last one, so
/// that not many more blocks than that are found.
pub(super) async fn holding(
    endpoint: &Endpoint,
    wanted: &[Wanted],
    heights: RangeInclusive<Height>,
    at_most: Option<usize>,
) -> Result<Holding, SourceError> {
    let mut holding = Holding { through: *heights.end(), ..Holding::default() };
    let open = |wanted| Open { wanted, token: None, tokens: HashSet::new(), heights: 0, last: None, empty: 0 };
    let span = heights.end().get().saturating_sub(heights.start().get()).saturating_add(1);
    let mut questions: Vec<Open<'_>> = wanted.iter().map(open).collect();
    let mut page_size = PAGE;
    while !questions.is_empty() {
        let calls: Vec<Call> = questions.iter().map(|open| open.call(&heights, span, page_size)).collect();
        let answers = endpoint.ask(&calls).await?;
        let mut unfinished = Vec::new();
        for ((mut open, call), answer) in questions.into_iter().zip(&calls).zip(answers) {
            let raw = match answer {
                Ok(raw) => raw,
                Err(error) if error.code.as_i64() == Some(PAGE_TOO_BIG) && page_size > 1 => {
                    // The same page again, smaller; those that were answered go on from where they are.
                    page_size /= 2;
                    unfinished.push(open);
                    continue;
                }
                Err(error) => return Err(endpoint.refused(call, &error)),
            };
            let page = wire::page(&raw).map_err(|what| endpoint.transient(what))?;
            for event in &page.events {
                open.take(endpoint, event, &heights, &mut holding)?;
            }
            // An empty text is how some nodes say that there is no more.
            let Some(token) = page.continuation_token.filter(|token| !token.is_empty()) else { continue };
            if !open.tokens.insert(token.clone()) {
                return Err(endpoint.transient(format!("{GET_EVENTS} gives one continuation token twice")));
            }
            // A page moves on by a block at least; more of them than there are blocks never end.
            open.empty = if page.events.is_empty() { open.empty + 1 } else { 0 };
            if open.empty > span.min(MOST_EMPTY) {
                let what = format!("{GET_EVENTS} gives {} pages without events, and a token for another", open.empty);
                return Err(match endpoint.transient(what) {
                    SourceError::Transient { what, .. } if span > 1 => {
                        SourceError::RangeTooLarge { what, at_most: None }
                    }
                    alone => alone,
                });
            }
            match open.last.and_then(Height::prev) {
                Some(before) if at_most.is_some_and(|most| open.heights > most) => {
                    holding.through = holding.through.min(before);
                }
                _ => {
                    open.token = Some(token);
                    unfinished.push(open);
                }
            }
        }
        questions = unfinished;
    }
    if let Some((beyond, _)) = at_most.and_then(|most| holding.blocks.iter().nth(most))
        && let Some(before) = beyond.prev()
    {
        holding.through = holding.through.min(before);
    }
    let through = holding.through;
    holding.blocks.retain(|height, _| *height <= through);
    holding.counts.retain(|(height, _), _| *height <= through);
    Ok(holding)
}

impl Open<'_> {
    fn call(&self, heights: &RangeInclusive<Height>, span: u64, page_size: u64) -> Call {
        let mut filter = json!({
            "from_block": { "block_number": heights.start().get() },
            "to_block": { "block_number": heights.end().get() },
            "address": self.wanted.address.to_string(),
            "chunk_size": page_size,
        });
        if let Value::Object(filter) = &mut filter {
            if let Some(selector) = self.wanted.selector {
                filter.insert("keys".into(), json!([[selector.to_string()]]));
            }
            if let Some(token) = &self.token {
                filter.insert("continuation_token".into(), json!(token));
            }
        }
        Call::over(GET_EVENTS, json!({ "filter": filter }), span)
    }

    fn take(
        &mut self,
        endpoint: &Endpoint,
        event: &wire::PlacedEvent,
        heights: &RangeInclusive<Height>,
        holding: &mut Holding,
    ) -> Result<(), SourceError> {
        let (Some(number), Some(hash)) = (event.block_number, event.block_hash) else {
            return Err(endpoint.transient("an event of a block that is not confirmed, which nobody asked for"));
        };
        let Some(height) = Height::new(number).filter(|height| heights.contains(height)) else {
            let what = format!("an event of block {number}, asked for {} to {}", heights.start(), heights.end());
            return Err(endpoint.transient(what));
        };
        if event.from_address != self.wanted.address {
            return Err(endpoint.lies(height, "an event of a contract that was not asked for"));
        }
        if self.last.is_some_and(|last| height < last) {
            return Err(endpoint.lies(height, format!("{GET_EVENTS} goes back to it")));
        }
        self.heights += usize::from(self.last != Some(height));
        self.last = Some(height);
        if *holding.blocks.entry(height).or_insert(hash) != hash {
            return Err(SourceError::Changed { height });
        }
        *holding.counts.entry((height, self.wanted.clone())).or_default() += 1;
        Ok(())
    }
}
