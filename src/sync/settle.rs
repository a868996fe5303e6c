//! Whether a stored chain may go on with this source and these settings: decided before any of them is written.

use super::SyncError;
use crate::chain::Height;
use crate::sources::Identity;
use crate::store::{ChainSettings, StoredChain};

/// Where a chain is counted from, when that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MovedStart {
    pub(super) from: Height,
    pub(super) to: Height,
}

/// What changes for the stored blocks, if anything does. Without blocks every setting may change.
///
/// # Errors
/// What must not change under stored blocks: the network, the kind, and without `allow_reset` the start.
pub(super) fn check(
    stored: &StoredChain,
    settings: &ChainSettings,
    identity: &Identity,
    allow_reset: bool,
) -> Result<Option<MovedStart>, SyncError> {
    let row = &stored.chain;
    let chain = row.name.clone();
    if let (Some(stored), Some(found)) = (&row.network_id, &identity.network_id)
        && stored != found
    {
        return Err(SyncError::AnotherNetwork { chain, stored: stored.clone(), found: found.clone() });
    }
    let Some(lowest) = stored.lowest else { return Ok(None) };
    if row.kind != identity.kind {
        return Err(SyncError::AnotherKind { chain, stored: row.kind, found: identity.kind });
    }
    let from = row.start_height.unwrap_or(lowest);
    match settings.start_height.filter(|to| *to != from) {
        Some(to) if !allow_reset => Err(SyncError::AnotherStart { chain, stored: from, found: to }),
        moved => Ok(moved.map(|to| MovedStart { from, to })),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::chain::{BlockRef, ChainId, Hash, Kind};
    use crate::store::ChainRow;

    fn height(n: u32) -> Height {
        Height::from(n)
    }

    /// A chain of kind `other` and network `net-a`, with blocks at these heights.
    fn stored(blocks: Option<(u32, u32)>, start: Option<u32>) -> StoredChain {
        StoredChain {
            chain: ChainRow {
                id: ChainId(1),
                name: "main".to_owned(),
                kind: Kind::Other,
                network_id: Some("net-a".to_owned()),
                start_height: start.map(height),
                finality_depth: 64,
                head_height: None,
                final_height: None,
                source_position: None,
            },
            tip: blocks.map(|(_, tip)| BlockRef { height: height(tip), hash: Hash::new(format!("h{tip}")) }),
            lowest: blocks.map(|(lowest, _)| height(lowest)),
            vaults: None,
        }
    }

    /// What is said when a source of this kind and network comes with this start.
    fn said(stored: &StoredChain, kind: Kind, network: Option<&str>, start: Option<u32>, allow: bool) -> String {
        let settings = ChainSettings {
            name: "main".to_owned(),
            kind,
            start_height: start.map(height),
            finality_depth: None,
            announcers: None,
        };
        let identity = Identity { kind, network_id: network.map(str::to_owned) };
        match check(stored, &settings, &identity, allow) {
            Ok(None) => "goes on".to_owned(),
            Ok(Some(MovedStart { from, to })) => format!("from {from} to {to}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn stored_blocks_keep_their_network_kind_and_start() {
        let net = Some("net-a");
        let (empty, three, from_5) = (stored(None, Some(5)), stored(Some((5, 9)), None), stored(Some((5, 9)), Some(5)));
        let refused = |text: &str, words: &[&str]| assert!(words.iter().all(|word| text.contains(word)), "{text}");
        let mut unnamed = stored(Some((5, 9)), None);
        unnamed.chain.network_id = None;
        // People wrote its blocks, or no source that names its network: it is kept with the next ones.
        assert_eq!(said(&unnamed, Kind::Other, net, None, false), "goes on");
        for allow in [false, true] {
            // Without blocks everything may change but the network, where one is stored.
            assert_eq!(said(&empty, Kind::Evm, net, Some(7), allow), "goes on");
            assert_eq!(said(&empty, Kind::Evm, None, None, allow), "goes on");
            refused(&said(&empty, Kind::Other, Some("net-b"), None, allow), &["net-b", "net-a", "--chain"]);
            for stored in [&three, &from_5] {
                assert_eq!(said(stored, Kind::Other, net, None, allow), "goes on");
                assert_eq!(said(stored, Kind::Other, None, Some(5), allow), "goes on", "that is where it starts");
                refused(&said(stored, Kind::Evm, net, None, allow), &["kind evm", "kind other", "drop_chain('main')"]);
                refused(&said(stored, Kind::Evm, Some("net-b"), Some(5), allow), &["network net-b"]);
            }
        }
        for stored in [&three, &from_5] {
            for start in [0, 4, 6, 10] {
                let words = [&start.to_string(), "count from 5", "--allow-reset"];
                refused(&said(stored, Kind::Other, net, Some(start), false), &words);
                assert_eq!(said(stored, Kind::Other, net, Some(start), true), format!("from 5 to {start}"));
            }
        }
    }
}
