//! Named pieces of derived state.

pub mod token_balances;
