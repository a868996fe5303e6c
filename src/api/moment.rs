//! Which chain a request is about, and which state of it.

use super::reply::{self, Answer, Failure};
use super::request;
use crate::store::reads::{At, ChainChoice, ChainNow, ChainState, Moment, NOW, NamedBlock, Snapshot};

/// The chain a request names, as a projection has it.
pub(super) async fn chain(
    snapshot: &Snapshot<'_>,
    name: Option<&str>,
    projection: &str,
) -> Result<ChainState, Failure> {
    chosen(snapshot.chain(name, projection).await?, name)
}

/// The one chain that a request is about.
pub(super) fn chosen<C>(choice: ChainChoice<C>, name: Option<&str>) -> Result<C, Failure> {
    match choice {
        ChainChoice::Found(chain) => Ok(chain),
        ChainChoice::Unknown => Err(Failure::unknown_chain(name)),
        ChainChoice::Ambiguous => {
            let error = "there are several chains: name one with chain=; /chains lists them";
            Err(Failure::bad_request("chain_required", error))
        }
    }
}

/// The state an answer is read from.
pub(super) struct State {
    pub(super) height: i64,
    pub(super) block: Option<NamedBlock>,
    pub(super) through_height: Option<i64>,
}

impl State {
    /// The newest state.
    pub(super) fn now(chain: &ChainNow) -> State {
        State { height: NOW, block: chain.block.clone(), through_height: chain.through_height }
    }

    /// The state that is asked about.
    pub(super) async fn of(snapshot: &Snapshot<'_>, chain: &ChainState, at: &At) -> Result<State, Failure> {
        let moment = match at {
            At::Hash(hash) => {
                let spelt = request::canonical(chain.kind, hash);
                match snapshot.moment(chain, &At::Hash(spelt.clone().into_owned())).await? {
                    // A node's felts have no leading zeros. Whoever writes blocks by hand names them as he likes.
                    Moment::UnknownBlock => match crate::chain::canonical(hash) {
                        Ok(given) if given != spelt => snapshot.moment(chain, &At::Hash(given.into_owned())).await?,
                        _ => Moment::UnknownBlock,
                    },
                    known => known,
                }
            }
            at => snapshot.moment(chain, at).await?,
        };
        match moment {
            Moment::Stands { height, block, through_height } => Ok(State { height, block, through_height }),
            Moment::UnknownBlock => Err(Failure::unknown_block()),
            Moment::BlockReplaced => Err(Failure::block_replaced()),
        }
    }

    /// Balances can be read at this height.
    pub(super) fn has_balances(&self, chain: &ChainState) -> Result<(), Failure> {
        match chain.history_from {
            Some(from) if self.height < from => Err(Failure::history_pruned(Some(from))),
            _ => Ok(()),
        }
    }

    pub(super) fn name(&self, answer: &mut Answer, chain: &ChainNow) {
        reply::name_block(answer, chain, self.block.as_ref(), self.through_height);
    }
}
