//! Ebbtide keeps state derived from a blockchain right, in plain Postgres tables, through every reorganisation: token
//! balances, option vaults, and any table of yours.
//! The chain tables say what the chain *is*, the journal says what has been *done*, and the processor moves, one
//! block at a time, from the second to the first. Each effect carries its undo, written in the same transaction.
//!
//! # What it promises
//! - Balances, journal and checkpoint change together or not at all. A crash loses nothing and repeats nothing.
//! - One snapshot shows whole blocks of one branch; a reorganisation is one transaction.
//! - Undo takes back exactly what was done. Where a balance is not what the journal left, it stops and says so.
//! - A change of the chain tables is seen, whoever makes it and when. A notification only says "look"; a lost, late or
//!   repeated one changes nothing but the moment.
//! - Two processors at once are safe: the loser of a race writes nothing.
//!
//! # What it does not
//! - Make a lying source honest. Links and hashes are checked; with one node alone, that node is believed.
//! - See balances that move without an event.
//! - Wait for the disk before balances are shown: after a power cut the last blocks may be applied a second time, from a state
//!   that never saw them. Blocks are durable when their write returns.
//! - Deliver anything outside Postgres.
//!
//! # A block arrives
//! 1. [`sync`] asks its [`Source`](sources::Source) for the head. Its parent is our newest block, so the decision
//!    ([`chain::plan`]) is to extend.
//! 2. One transaction ([`store::SyncLock::write`]) stores the events with the block row, which is their commit mark; the trigger
//!    on `blocks` rings.
//! 3. The chain's task (`process/task.rs`) wakes ([`store::Wake`]) and looks: one statement (`sql/queries/look.sql`) brings the
//!    checkpoint, the blocks that it was made from and the next ones as they stand now ([`chain::decide::Look`]).
//! 4. [`chain::decide::decide`], which reads nothing else, answers [`Extend`](chain::decide::Move::Extend).
//! 5. The block's movements are read, checked and netted ([`projections::token_balances`]); balances that the processor does not
//!    know are looked up, and what each becomes is computed.
//! 6. One statement (`sql/queries/apply.sql`) holds the block and the one below it if they are still what was read, moves the
//!    checkpoint if it still is what was looked at, writes the balances if each is what it was computed from, and journals
//!    the changes. If any of that does not hold, nothing is written, and the task looks again.
//!
//! Far behind, the same statement applies as many final blocks as hold 10,000 events, while the next run is computed. Several
//! small ones are in flight, each sent for the checkpoint that the one before it will leave ([`chain::decide::Base`]).
//!
//! # A reorganisation of depth three
//! ```text
//! height  | 6 | 7 | 8 | 9 | 10
//! ours    | A   B   C   D
//! theirs  | A   B'  C'  D'  E'
//! ```
//! The source's head names a parent that we do not have. [`sync`] asks for lower names, a few more each time, until it
//! finds one that both sides share, A. Where several nodes are known, two must agree. One transaction archives B, C and D
//! and writes B' to E'. The processor finds that what it applied and what is stored part after A. In one transaction it
//! holds the checkpoint and A, takes back the changes of B, C and D (`sql/queries/undo.sql`), drops the accounts that
//! did not exist at A, applies B' to D', and writes a row of `reorgs`. Readers see D, then D'. E' follows as any block.
//!
//! # Tables of yours
//! `create_projection` (or the trait [`projections::Projection`]) puts tables under triggers. For each block, one statement
//! (`apply_sql_blocks` in `sql/triggers/70_projections.sql`) does the same as above: fence, checkpoint, then the function. The
//! triggers (`sql/triggers/60_tracking.sql`) keep each row as it was before the block first touched it, and a reorganisation
//! restores all tables of the projection in one statement. Each projection has a task of its own ([`process`]); one that runs
//! after the balances is taken along in their transactions (`sql/triggers/80_followers.sql`).
//!
//! # A node lies
//! It answers with logs of another block: the source compares hashes and the header's bloom filter, and refuses the answer as
//! a fault that may pass. It reports a lower head: that is a hint, and nothing is dropped until a hash at a height of ours
//! differs. It names other blocks below the final height: the syncer stops, shows both hashes and is unready, and readers keep
//! what stood, until someone says `--allow-reset`. It is another network altogether: the id stored with the first blocks differs,
//! and nothing is written. An event in it that no account can have made: the event goes to `rejected_events` with its reason.
//!
//! # The modules, in reading order
//! [`chain`]: plain values and the decision. [`sources`]: where blocks come from. [`store`]: everything said to Postgres.
//! [`sync`] and [`process`]: the two loops. [`projections`]: what follows from events. [`api`]: REST. [`verify`]: all of it
//! computed again by other code, and compared. [`private_postgres`]: a server for those who name none. [`config`], [`ops`],
//! [`watch`]: settings, and what operators see.

pub mod api;
pub mod chain;
pub mod config;
pub mod heart;
pub mod ops;
pub mod private_postgres;
pub mod process;
pub mod projections;
pub mod sources;
pub mod store;
pub mod sync;
pub mod verify;
pub mod watch;
