-- What follows from the chain. The processor alone writes these tables.

create table projections (
    name text collate "C" not null,
    apply text,
    tables text[] not null default '{}',
    after text collate "C",
    chain_id bigint,
    kind text collate "C",
    start_height bigint,
    settings jsonb not null default '{}',
    constraint projections_pkey primary key (name),
    constraint projections_name_is_1_to_48_letters_digits_underscores check (name ~ '^[a-z_][a-z0-9_]{0,47}$'),
    constraint projections_after_is_known foreign key (after) references projections,
    constraint projections_chain_is_known foreign key (chain_id) references chains,
    constraint projections_kind_is_known check (kind in ('evm', 'gno', 'starknet', 'other')),
    constraint projections_start_height_is_not_negative check (start_height >= 0)
);
comment on table projections is 'Named pieces of derived state and the tables they own.';
comment on column projections.apply is 'The SQL function called with (chain_id, height) for each block; null: the program itself applies it.';
comment on column projections.after is 'Runs in this projection''s transactions, after it.';
comment on column projections.chain_id is 'The one chain it follows; null: every chain.';
comment on column projections.kind is 'The kind of chain it is about; null: every kind.';
comment on column projections.start_height is 'Blocks below this height do not concern it.';
insert into projections (name, tables) values ('token_balances', '{balances,balance_history}');

create table checkpoints (
    chain_id bigint not null,
    projection text collate "C" not null,
    height bigint,
    hash text collate "C",
    through_height bigint,
    start_height bigint,
    history_from bigint,
    journal_from bigint,
    seq bigint not null default 0,
    redo_from bigint,
    deep_change boolean not null default false,
    paused boolean not null default false,
    pause_at bigint,
    halted_reason text,
    apply_digest text collate "C",
    failed_height bigint,
    failed_reason text,
    failures bigint not null default 0,
    updated_at timestamptz not null default now(),
    constraint checkpoints_pkey primary key (chain_id, projection),
    constraint checkpoints_chain_is_known foreign key (chain_id) references chains,
    constraint checkpoints_projection_is_known foreign key (projection) references projections,
    constraint checkpoints_redo_from_is_not_negative check (redo_from >= 0),
    constraint checkpoints_pause_at_is_not_negative check (pause_at >= 0)
) with (fillfactor = 10);
comment on table checkpoints is 'The last block each projection has applied.';
comment on column checkpoints.through_height is 'Applied up to here; above height where the last heights are empty blocks.';
comment on column checkpoints.start_height is 'The height this state began at; opening balances stand at the height before it.';
comment on column checkpoints.history_from is 'balance_changes below this height were pruned; null: none were.';
comment on column checkpoints.journal_from is
    'Internal: applied_blocks holds every block applied from this height on; null: all of them. What lies below is final.';
comment on column checkpoints.seq is 'One more for every apply and every undo: the fence between processors.';
comment on column checkpoints.redo_from is 'Apply again from this height; set by replay() and by changes at or below the final height.';
comment on column checkpoints.deep_change is 'redo_from was set by a change of the chain at or below the final height.';
comment on column checkpoints.apply_digest is 'Internal: digest of the function this state was made by; another one has it made anew.';
comment on column checkpoints.failed_reason is 'Why the block at failed_height could not be applied; tried again, now and then.';
comment on column checkpoints.failures is 'How often in a row.';
comment on column checkpoints.pause_at is 'Where a paused projection stays; null: where it is.';

create table applied_blocks (
    chain_id bigint not null,
    projection text collate "C" not null,
    height bigint not null,
    hash text collate "C" not null,
    revision bigint not null,
    applied_at timestamptz not null default now(),
    constraint applied_blocks_pkey primary key (chain_id, projection, height)
);
comment on table applied_blocks is 'The journal of what has been done: blocks applied and not yet final.';

create table balances (
    chain_id bigint not null,
    token text collate "C" not null,
    address text collate "C" not null,
    amount numeric not null,
    height bigint not null,
    prev_height bigint,
    balance_id bigint not null generated always as identity (cache 100),
    place integer not null default 0,
    constraint balances_pkey primary key (chain_id, token, address),
    constraint balances_balance_id_is_unique unique (balance_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
comment on table balances is 'Exact, signed balances in base units; a row for every account that ever had an event.';
comment on column balances.height is 'Height of the last change.';
comment on column balances.prev_height is 'Internal: height of the change before it, handed to balance_history; may be out of date.';
comment on column balances.balance_id is 'Internal: what balance_history calls this balance; ends with the row.';
comment on column balances.place is 'Internal: which of the rows of the statement that wrote it last this one was.';

-- Read through the view balance_changes, which puts token and address back. A number in their place makes its rows and
-- its index a fraction as wide, and catching up nearly twice as fast (docs/decisions/004).
create table balance_history (
    balance_id bigint not null,
    height bigint not null,
    prev_height bigint,
    chain_id bigint not null,
    delta numeric not null,
    balance_after numeric not null,
    constraint balance_history_pkey primary key (balance_id, height)
);
-- Undo finds its rows by this one; always appended at its right end, so it is cheap.
create index balance_history_height on balance_history (chain_id, height);
comment on table balance_history is 'Every change of every balance, one row a block: the undo, the history and the audit in one.';
comment on column balance_history.prev_height is 'Height of the change before; null: the account did not exist.';

create table reorgs (
    id bigint generated always as identity,
    chain_id bigint not null,
    projection text collate "C" not null,
    ancestor bigint,
    depth bigint not null,
    old_tip_height bigint not null,
    old_tip_hash text collate "C" not null,
    new_tip_height bigint,
    new_tip_hash text collate "C",
    blocks_undone bigint not null,
    blocks_applied bigint not null,
    rows_touched bigint not null,
    duration_ms double precision not null,
    at timestamptz not null default now(),
    constraint reorgs_pkey primary key (id)
);
create index reorgs_chain on reorgs (chain_id, id);
comment on table reorgs is 'Every time a projection left one branch for another, with its cost.';
comment on column reorgs.ancestor is 'The last block both branches share; null: none.';

-- The tables of projections whose undo is recorded by triggers (sql/triggers/60_tracking.sql). Names and not oids: they
-- must survive a dump and a restore.
create table tracked_tables (
    id bigint generated always as identity,
    projection text collate "C" not null,
    relation text collate "C" not null,
    by_chain boolean not null,
    columns jsonb not null,
    keys smallint[] not null,
    shape text not null,
    constraint tracked_tables_pkey primary key (id),
    constraint tracked_tables_belong_to_one_projection unique (relation),
    constraint tracked_tables_projection_is_known foreign key (projection) references projections on delete cascade
);
comment on table tracked_tables is 'Internal: the tables of projections that triggers keep undo for, each in undo_ and its id.';
comment on column tracked_tables.columns is 'What the undo table holds: {"attribute number": [name, type]}.';
comment on column tracked_tables.keys is 'Attribute numbers of the primary key.';
comment on column tracked_tables.shape is 'The table as it was when its triggers were made; another shape has them made anew.';

create table rebuilds (
    chain_id bigint not null,
    projection text collate "C" not null,
    reason text not null,
    from_height bigint not null,
    at_height bigint not null,
    to_height bigint not null,
    started_at timestamptz not null default now(),
    constraint rebuilds_pkey primary key (chain_id, projection)
);
comment on table rebuilds is 'Projections being applied again from their start; a row goes when it is done.';
