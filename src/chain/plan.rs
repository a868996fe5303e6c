//! plan(ours, theirs): what to undo and what to apply.
