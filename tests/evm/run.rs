//! The built program on a node that misbehaves: whatever it does, the balances in the end are those of its chain,
//! and never those of anything else.

mod branches;
mod cost;
mod faults;
mod finality;
mod follow;
mod settings;
mod tokens;
