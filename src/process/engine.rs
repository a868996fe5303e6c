//! What applies a projection: the same steps for balances, for functions in the database and for code of the program.

use std::sync::Arc;

use super::read::{CHUNK_EVENTS, Prepared, Reading};
use crate::chain::decide::{Base, Look, Rules, Switch, Tells};
use crate::chain::{BlockRef, ChainId, Height};
use crate::projections::Projection;
use crate::projections::token_balances::{self, Accounts, Cache, History, OnBadEvent, OnDeepChange};
use crate::store::{Balance, BlockError, Changes, Fence, Keys, LedgerWrite, Run, StoreError, Tx, Undone};

/// Most final blocks in one transaction of an SQL function: what is asked once a transaction is half of a small block's cost.
const FUNCTION_BLOCKS: usize = 25;
/// Most events in one transaction of final blocks that are told, or one block: a sink takes a row of notices apart each time it is
/// given some of it.
const TOLD_EVENTS: u64 = 1_000;

/// What a projection's blocks are applied with.
#[derive(Clone)]
pub(super) enum Work {
    /// `token_balances`: statements of its own.
    Balances,
    /// A function in the database.
    Function,
    /// Code of this program.
    Code(Arc<dyn Projection>),
}

/// One projection on one chain, as far as applying goes.
pub(super) struct Engine {
    pub(super) chain: ChainId,
    pub(super) name: String,
    pub(super) work: Work,
    pub(super) settings: token_balances::Settings,
    pub(super) on_deep_change: OnDeepChange,
    /// Balances as they stand on `known_on`.
    cache: Cache,
    known_on: Base,
}

impl Engine {
    pub(super) fn new(
        chain: ChainId,
        name: String,
        work: Work,
        settings: token_balances::Settings,
        on_deep_change: OnDeepChange,
    ) -> Engine {
        Engine { chain, name, work, settings, on_deep_change, cache: Cache::default(), known_on: Base::default() }
    }

    pub(super) fn is_balances(&self) -> bool {
        matches!(self.work, Work::Balances)
    }

    /// What its state is made by now.
    pub(super) fn digest(&self, look: &Look) -> Option<String> {
        match &self.work {
            Work::Balances => None,
            Work::Function => look.digest.clone(),
            Work::Code(code) => Some(code.version()),
        }
    }

    pub(super) fn rules(&self, look: &Look, most_blocks: u64, stuck_at: Option<Height>) -> Rules {
        Rules {
            digest: self.digest(look),
            halts_on_deep_change: self.on_deep_change == OnDeepChange::Halt,
            // Nothing tells what was said of blocks below the journal. Where all is built again, what differs is told.
            undoes_final: self.is_balances()
                && self.settings.history == History::Full
                && !look.checkpoint.tells.anything(),
            most_blocks,
            stuck_at,
        }
    }

    /// Why a block must not be applied, where events that cannot be halt the projection.
    pub(super) fn bad_event(&self, block: &Prepared) -> Option<String> {
        let bad = block.netted.refused.first().filter(|_| self.settings.on_bad_event == OnBadEvent::Halt)?;
        Some(format!(
            "block {}: event {} of transaction {} cannot be applied: {}",
            block.block, bad.event_index, bad.tx_index, bad.reason
        ))
    }

    /// How many of these blocks one transaction applies, at most `most`: one whose undo is recorded, of those that are final
    /// as many as hold a chunk's events.
    pub(super) fn run_length(&self, runs: &Runs, blocks: &[Prepared], most: usize) -> usize {
        let most = if matches!(self.work, Work::Function) { most.min(FUNCTION_BLOCKS) } else { most };
        if runs.journals(blocks) {
            return 1;
        }
        let most_events = if runs.tells.anything() { TOLD_EVENTS } else { CHUNK_EVENTS };
        let mut events = 0;
        let merged = blocks[..runs.alike(blocks)].iter().take(most).take_while(|block| {
            events += block.netted.events;
            events <= most_events && self.bad_event(block).is_none()
        });
        merged.count().max(1)
    }

    /// Which of the next blocks it reads at once for a run.
    pub(super) fn reading(&self) -> Reading {
        match self.work {
            Work::Balances => Reading::Netted,
            Work::Function => Reading::Names,
            Work::Code(_) => Reading::Ranges,
        }
    }

    /// The balances are known as they stand on this checkpoint, if they were kept on it.
    pub(super) fn know_on(&mut self, base: &Base) {
        if self.known_on != *base {
            self.forget();
        }
        self.known_on = base.clone();
    }

    /// Knows nothing of the balances from here on.
    pub(super) fn forget(&mut self) {
        self.cache.clear();
        self.known_on = Base::default();
    }

    /// What of these accounts' balances is known, and what has to be asked for.
    pub(super) fn lookup(&self, accounts: &Accounts) -> Lookup {
        let balances: Vec<Option<Balance>> = accounts.keys().iter().map(|key| self.cache.get(key)).collect();
        let mut missing: Vec<usize> = (0..balances.len()).filter(|place| balances[*place].is_none()).collect();
        // In their order: numbers of new balances follow it, and so do their rows.
        missing.sort_unstable_by_key(|place| &accounts.keys()[*place]);
        let mut keys = Keys::default();
        missing.iter().for_each(|place| keys.push(&accounts.keys()[*place]));
        Lookup { balances, missing, keys }
    }

    /// The blocks above this height are noted in the journal. What a block did to tables of their own is told from the undo that
    /// goes with it, final or not.
    pub(super) fn journal_above(&self, look: &Look, above: Option<Height>) -> Option<Height> {
        above.filter(|_| self.is_balances() || !look.checkpoint.tells.anything())
    }

    /// What a run changes, from balances that stand as they do before it; then as they do after it.
    pub(super) fn changes(
        &self,
        accounts: &Accounts,
        balances: &mut [Balance],
        blocks: &[Prepared],
        run: &Run,
        keeps_history: bool,
    ) -> Result<Changes, StoreError> {
        let netted: Vec<_> = blocks.iter().map(|b| (b.block.height, &b.netted)).collect();
        token_balances::changes(
            accounts.keys(),
            balances,
            &netted,
            &self.settings,
            keeps_history,
            run.tells.unwrap_or_default(),
        )
        .map_err(|reason| StoreError::Refused { reason })
    }

    /// Whether the changes of a run stay in `balance_history`: what is in the journal can be taken back.
    pub(super) fn keeps_history(&self, run: &Run) -> bool {
        self.settings.history == History::Full || run.journals
    }

    /// Keeps the chunk's balances as the last of its runs leaves them. False: not all of them are known from here on.
    pub(super) fn keep(&mut self, accounts: &Accounts, balances: &[Balance], base: &Base) -> bool {
        self.known_on = base.clone();
        self.cache.keep(accounts.keys().iter().zip(balances.iter().copied()))
    }

    /// Takes the state back to the ancestor.
    pub(super) async fn undo(&self, tx: &mut Tx<'_>, switch: &Switch) -> Result<Undone, StoreError> {
        if switch.below_journal.is_some() {
            tx.unlimited().await?;
        }
        match self.work {
            Work::Balances => tx.undo_to(switch.ancestor.as_ref(), switch.redo_from).await,
            Work::Function | Work::Code(_) => tx.undo_tables(switch.ancestor.as_ref(), switch.redo_from).await,
        }
    }

    /// Nothing counts as applied from here on. What readers see stays until [`finish`](Engine::finish) where the state can
    /// be built beside it.
    pub(super) async fn clear(&self, tx: &mut Tx<'_>, had_state: bool) -> Result<Undone, StoreError> {
        match &self.work {
            Work::Balances => tx.build_beside().await,
            Work::Function => tx.empty_tables(false).await,
            Work::Code(code) => tx.empty_tables(code.builds_beside() && had_state).await,
        }
    }

    /// Applies a run on top of a transaction. False: the fence did not hold.
    pub(super) async fn apply(
        &mut self,
        tx: &mut Tx<'_>,
        run: &Run,
        accounts: &Accounts,
        balances: &mut [Balance],
        blocks: &[Prepared],
        needs_history: bool,
    ) -> Result<Option<u64>, StoreError> {
        let applied = match &self.work {
            Work::Balances => {
                let changes =
                    self.changes(accounts, balances, blocks, run, needs_history || self.keeps_history(run))?;
                return Ok(tx.apply(run, &changes).await?.then_some(changes.negative));
            }
            Work::Function => tx.apply_function(run).await?,
            Work::Code(code) => {
                if tx.begin_blocks(run).await? {
                    let blocks: Vec<BlockRef> = run.blocks.iter().map(|(block, _)| block.clone()).collect();
                    let range = tx.range(&blocks);
                    tx.hold_during(code.apply_range(&range)).await.map_err(BlockError::into_store)?;
                    tx.leave_block().await?;
                    true
                } else {
                    false
                }
            }
        };
        Ok(applied.then_some(0))
    }

    /// Makes the live tables what was built beside them, if it was. Returns how many rows differed.
    pub(super) async fn finish(&self, tx: &mut Tx<'_>) -> Result<u64, StoreError> {
        match self.work {
            Work::Balances => tx.replace_by_built().await,
            Work::Function | Work::Code(_) => tx.replace_tables_by_built().await,
        }
    }

    /// Drops the undo of blocks up to the horizon, for a state that was compared as it stands at `seq`.
    pub(super) async fn prune(&self, write: &LedgerWrite, look: &Look, horizon: Height) -> Result<(), StoreError> {
        let (chain, name, seq) = (self.chain, self.name.as_str(), look.checkpoint.seq);
        if !self.is_balances() {
            return write.prune_undo(chain, name, horizon, seq).await;
        }
        match self.settings.history {
            History::Full => write.prune_applied(chain, name, horizon, seq).await,
            History::Window => write.prune_history(chain, name, horizon, seq).await,
        }?;
        if look.checkpoint.tells.anything() {
            write.prune_outbox(chain, name, horizon).await?;
        }
        Ok(())
    }
}

/// Cuts blocks into runs, each on what the one before it leaves.
pub(super) struct Runs {
    start: Height,
    digest: Option<String>,
    journal_above: Option<Height>,
    on_replica: bool,
    tells: Tells,
    /// Whether final blocks are told of as well.
    tells_final: bool,
    before: Option<(BlockRef, Option<i64>)>,
}

impl Runs {
    /// Runs after `before` (with its revision, where it is known). `journal_above`: blocks above this height are noted in
    /// the journal of applied blocks; None means all of them.
    pub(super) fn new(
        look: &Look,
        start: Height,
        digest: Option<String>,
        journal_above: Option<Height>,
        before: Option<(BlockRef, Option<i64>)>,
    ) -> Runs {
        let (on_replica, tells) = (look.after.is_some(), look.checkpoint.tells);
        Runs { start, digest, journal_above, on_replica, tells, tells_final: true, before }
    }

    /// All is applied again: of final blocks nothing is told, but what differs in the end.
    pub(super) fn again(self) -> Runs {
        Runs { tells_final: false, ..self }
    }

    /// The run of these blocks, on a checkpoint.
    pub(super) fn next(&mut self, base: Base, blocks: &[Prepared]) -> Run {
        let mut fence = Fence::default();
        if let Some((block, revision)) = &self.before {
            fence.hold(block, *revision);
        }
        for block in blocks {
            fence.hold(&block.block, Some(block.revision));
            if block.gap {
                fence.needs_complete_to(block.block.height.minus(1));
            }
        }
        self.before = blocks.last().map(|b| (b.block.clone(), Some(b.revision)));
        Run {
            base,
            fence,
            blocks: blocks.iter().map(|b| (b.block.clone(), b.revision)).collect(),
            start: self.start,
            journals: self.journals(blocks),
            digest: self.digest.clone(),
            on_replica: self.on_replica,
            tells: Some(self.tells).filter(|_| self.tells_final || self.journals(blocks)),
        }
    }

    /// Whether blocks are noted in the journal: a run of them is either all above where it begins, or all below.
    pub(super) fn journals(&self, blocks: &[Prepared]) -> bool {
        let first = blocks.first().map(|b| b.block.height);
        self.journal_above.zip(first).is_none_or(|(above, first)| first > above)
    }

    /// How many of these blocks are noted in the journal, or are not, as the first one.
    pub(super) fn alike(&self, blocks: &[Prepared]) -> usize {
        match self.journal_above {
            Some(above) if !self.journals(blocks) => blocks.partition_point(|b| b.block.height <= above),
            _ => blocks.len(),
        }
    }

    /// The block that the next run comes after.
    pub(super) fn before(&self) -> Option<&BlockRef> {
        self.before.as_ref().map(|(block, _)| block)
    }
}

/// The balances of some accounts, as far as they are known.
pub(super) struct Lookup {
    balances: Vec<Option<Balance>>,
    /// Places of the others,
    missing: Vec<usize>,
    /// and whose they are.
    pub(super) keys: Keys,
}

impl Lookup {
    /// All of them, with those that were asked for.
    pub(super) fn filled(mut self, found: Vec<Balance>) -> Result<Vec<Balance>, StoreError> {
        for (place, balance) in self.missing.iter().zip(found) {
            self.balances[*place] = Some(balance);
        }
        self.balances
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| StoreError::Nonsense { what: "fewer balances were found than were asked for".to_owned() })
    }
}
