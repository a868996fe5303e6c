//! Named pieces of derived state.

pub mod option_vaults;
pub mod token_balances;
