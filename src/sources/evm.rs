//! EVM chains over JSON-RPC: blocks and logs in, chain values out.

mod abi;
pub mod decode;
mod signature;

use alloy_primitives::{Address, hex};

/// An address in any case, as the 20 bytes it stands for.
fn parse_address(text: &str) -> Option<Address> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
    let mut bytes = [0u8; 20];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    // `decode_to_slice` would take a second prefix.
    (digits.len() == 40).then_some(Address::from(bytes))
}
