//! Where a token's history begins: the first block in which its contract has code.

use serde_json::json;

use crate::sources::rpc::contracts::Presence;
use crate::sources::rpc::endpoint::Call;

/// Whether a contract has code.
pub(super) const CODE: Presence = Presence {
    call: |contract, height| Call::new("eth_getCode", json!([contract, format!("{:#x}", height.get())])),
    read: |answer| {
        let code: String = serde_json::from_str(answer.as_ref().ok()?.get()).ok()?;
        code.starts_with("0x").then_some(code.len() > 2)
    },
};
