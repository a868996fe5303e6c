-- What other systems are told of: notices, written with the block that they are about, and the sinks that want them.

alter table checkpoints add column tells integer not null default 0;
comment on column checkpoints.tells is
    'Internal: what is to be told of each block, a sum: 1 something, 2 its transfers, 4 balances, 16 rows. 0: no sink wants anything.';
-- A checkpoint that is made again under the same name begins with the same numbers; its notices must have other ids.
alter table checkpoints add column number bigint not null generated always as identity;
comment on column checkpoints.number is 'Internal: of all checkpoints that there ever were, this one.';
alter table applied_blocks add column seq bigint;
comment on column applied_blocks.seq is 'Internal: the row of outbox that tells of this block, if there is one; null: applied by an earlier version.';

-- One row for each move of a checkpoint that is told, in the order of `seq`. Read through the view `notices`, which shows one row for
-- each of them. Packed, since a row for each notice makes a block four times as slow.
create table outbox (
    chain_id bigint not null,
    projection text collate "C" not null,
    seq bigint not null,
    mark text collate "C" not null,
    height bigint,
    hash text collate "C",
    heights bigint[] not null default '{}',
    hashes text[] collate "C" not null default '{}',
    parents text[] collate "C" not null default '{}',
    times timestamptz[] not null default '{}',
    undone jsonb,
    names text[] collate "C" not null default '{}',
    said text not null default '{}',
    at timestamptz not null default now(),
    constraint outbox_pkey primary key (chain_id, projection, seq)
);
create index outbox_undone on outbox (chain_id, projection, seq) where undone is not null;
comment on table outbox is 'Internal: what is told of each move of a checkpoint; the view notices shows it.';
comment on column outbox.seq is 'The checkpoint''s, after the move.';
comment on column outbox.mark is 'Begins the ids of its notices: a digest of the chain''s name, the projection and the block.';
comment on column outbox.height is 'The block that the checkpoint stands on after the move.';
comment on column outbox.heights is 'The blocks it went over, ascending; hashes, parents and times are theirs.';
comment on column outbox.undone is 'The blocks it took back that had been told, newest first, each as [seq of the row that told of it, height]. Null: it went forward.';
comment on column outbox.names is 'Tokens and addresses that `said` calls by their place.';
comment on column outbox.said is
    'Forward: {"blocks": [[transfers, balances, rows, emitted], …]}, as heights; a transfer is [tx_index, event_index, token, from, to, '
    'amount], a balance [token, address, amount], a row [table, operation, key as text, key, old, new], what is emitted [type, key, data]. Back, or built again: {"balances": […], "cause": …}.';

create table sinks (
    name text collate "C" not null,
    kind text collate "C" not null,
    types text[] collate "C",
    chains text[] collate "C",
    tokens text[] collate "C",
    addresses text[] collate "C",
    key text collate "C" not null default 'account',
    confirmations bigint not null default 0,
    final_only boolean not null default false,
    skip_retracted boolean not null default false,
    start text collate "C" not null default 'live',
    paused boolean not null default false,
    snapshots bigint not null default 0,
    position bigint not null default 0,
    leased bigint not null default 0,
    leased_until timestamptz,
    acked bigint not null default 0,
    created_at timestamptz not null default now(),
    constraint sinks_pkey primary key (name),
    constraint sinks_name_is_1_to_48_letters_digits_dash_underscore check (name ~ '^[A-Za-z0-9_-]{1,48}$'),
    constraint sinks_kind_is_known check (kind in ('pull')),
    constraint sinks_key_is_account_token_or_chain check (key in ('account', 'token', 'chain')),
    constraint sinks_confirmations_are_0_to_1000000 check (confirmations between 0 and 1000000),
    constraint sinks_start_is_known check (start in ('live', 'beginning', 'snapshot')),
    constraint sinks_acknowledge_what_they_were_given check (0 <= acked and acked <= leased and leased <= position)
);
comment on table sinks is 'Who is told: what each wants, where it began, where it is. Made by create_sink.';
comment on column sinks.types is 'The types of notices it wants; those that take them back come along. Null: all.';
comment on column sinks.chains is 'The chains it wants to hear of. Null: all.';
comment on column sinks.key is 'What its notices keep their order by: account, token or chain.';
comment on column sinks.confirmations is 'It is told of a block once the tip is so many above it.';
comment on column sinks.skip_retracted is 'What was taken back before it was told is not told.';
comment on column sinks.position is 'The number of the last notice that it was promised.';
comment on column sinks.leased is 'Up to here it was given; until leased_until nobody else is.';
comment on column sinks.acked is 'Up to here it has them.';

create table sink_streams (
    sink text collate "C" not null,
    chain_id bigint not null,
    projection text collate "C" not null,
    began bigint,
    seq bigint,
    n integer not null default 0,
    snapshot boolean not null default false,
    told_at timestamptz,
    constraint sink_streams_pkey primary key (sink, chain_id, projection),
    constraint sink_streams_sink_is_known foreign key (sink) references sinks on delete cascade
);
comment on table sink_streams is 'Internal: how far each sink was promised the notices of each checkpoint.';
comment on column sink_streams.began is 'The checkpoint''s seq when it began: what was told before is not for it. Null: it waits until the chain is caught up with.';
comment on column sink_streams.seq is 'The row of outbox that comes next, or is in hand;';
comment on column sink_streams.n is 'so many notices of it are done.';
comment on column sink_streams.snapshot is 'All that is there is to be told first.';

create table sink_snapshots (
    sink text collate "C" not null,
    chain_id bigint not null,
    projection text collate "C" not null,
    part bigint not null,
    mark text collate "C" not null,
    seq bigint not null,
    height bigint,
    hash text collate "C",
    said text not null,
    done bigint not null default 0,
    at timestamptz not null default now(),
    constraint sink_snapshots_pkey primary key (sink, chain_id, projection, part),
    constraint sink_snapshots_sink_is_known foreign key (sink) references sinks on delete cascade
);
comment on table sink_snapshots is 'Internal: what was there as of one block, in parts, until a sink was promised it.';

create table sink_skips (
    sink text collate "C" not null,
    chain_id bigint not null,
    projection text collate "C" not null,
    seq bigint not null,
    height bigint not null,
    constraint sink_skips_pkey primary key (sink, chain_id, projection, seq, height),
    constraint sink_skips_sink_is_known foreign key (sink) references sinks on delete cascade
);
comment on table sink_skips is 'Internal: blocks that a sink was not told of, since they had been taken back by then; until it has passed that.';

create table sink_batches (
    sink text collate "C" not null,
    first bigint not null,
    last bigint not null,
    notices text[] not null,
    at timestamptz not null default now(),
    constraint sink_batches_pkey primary key (sink, first),
    constraint sink_batches_sink_is_known foreign key (sink) references sinks on delete cascade,
    constraint sink_batches_are_whole check (cardinality(notices) = last - first + 1)
);
comment on table sink_batches is 'Internal: notices that a sink was promised and has not acknowledged, byte for byte as it is sent them.';
