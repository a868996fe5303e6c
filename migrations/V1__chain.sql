-- What the chain is. Syncers and people write these tables; the triggers in sql/triggers/ keep them whole.
-- Everything lives in the schema `ebbtide`, which is first on the search path while this runs.

create table chains (
    chain_id bigint generated always as identity,
    name text collate "C" not null,
    kind text collate "C" not null,
    network_id text collate "C",
    start_height bigint,
    finality_depth bigint not null default 64,
    head_height bigint,
    final_height bigint,
    complete_to bigint,
    writes bigint not null default 0,
    source_position jsonb,
    announcers text[] collate "C",
    listed_only boolean not null default false,
    constraint chains_pkey primary key (chain_id),
    constraint chains_name_is_taken unique (name),
    constraint chains_name_is_1_to_64_letters_digits_dot_dash_underscore check (name ~ '^[A-Za-z0-9_.-]{1,64}$'),
    constraint chains_kind_is_known check (kind in ('evm', 'gno', 'starknet', 'other')),
    constraint chains_start_height_is_not_negative check (start_height >= 0),
    constraint chains_finality_depth_is_0_to_10000000 check (finality_depth between 0 and 10000000),
    constraint chains_complete_to_is_at_least_minus_1 check (complete_to >= -1)
) with (fillfactor = 20);
comment on table chains is 'One row a chain. Inserting one is all it takes to have it processed.';
comment on column chains.network_id is 'What the node must answer; kept at first sight.';
comment on column chains.start_height is 'First height that counts; null: the lowest present.';
comment on column chains.finality_depth is 'Blocks below the head that are taken as final.';
comment on column chains.head_height is 'Newest height of the source; null: no source follows this chain.';
comment on column chains.final_height is 'No block up to here is expected to be replaced; undo is pruned here. Never falls, but for a reset.';
comment on column chains.complete_to is 'Up to here a missing height is an empty block.';
comment on column chains.writes is 'Internal: rises with every write of chain rows; its row lock makes writers of one chain take turns.';
comment on column chains.source_position is 'Internal: where a source that cannot be asked twice goes on.';
comment on column chains.announcers is
    'gno: packages whose NewToken events are believed; null: gno.land/p/demo/grc/grc20 and gno.land/p/demo/tokens/grc20.';
comment on column chains.listed_only is 'Internal: its source brings events of those contracts alone that it was told of, so a contract that is registered late is caught up first.';

-- Some chains name blocks in base64, which may begin with 0x; its padding tells it from hex.
create table blocks (
    chain_id bigint not null,
    height bigint not null,
    hash text collate "C" not null,
    parent_hash text collate "C" not null,
    time timestamptz,
    event_count bigint,
    revision bigint generated always as identity,
    constraint blocks_pkey primary key (chain_id, height),
    constraint blocks_chain_is_known foreign key (chain_id) references chains,
    constraint blocks_height_is_not_negative check (height >= 0),
    constraint blocks_hash_is_1_to_256_bytes_hex_in_lower_case check (
        octet_length(hash) between 1 and 256 and (hash = lower(hash) or left(hash, 2) not in ('0x', '0X') or right(hash, 1) = '=')),
    constraint blocks_parent_hash_is_at_most_256_bytes_hex_in_lower_case check (
        octet_length(parent_hash) <= 256 and (parent_hash = lower(parent_hash) or left(parent_hash, 2) not in ('0x', '0X') or right(parent_hash, 1) = '=')),
    constraint blocks_event_count_is_not_negative check (event_count >= 0)
);
create index blocks_hash on blocks (chain_id, hash);
comment on table blocks is 'The canonical branch alone. The block row is the commit mark of its events.';
comment on column blocks.event_count is 'If set: the exact number of rows in token_events and events; until they are there the block does not count.';
comment on column blocks.revision is 'A new value at every change of the block or its events; no value ever returns.';

create table transactions (
    chain_id bigint not null,
    height bigint not null,
    tx_index bigint not null,
    hash text collate "C" not null,
    success boolean not null default true,
    constraint transactions_pkey primary key (chain_id, height, tx_index),
    constraint transactions_position_is_not_negative check (height >= 0 and tx_index >= 0),
    constraint transactions_hash_is_at_most_256_bytes_hex_in_lower_case check (
        octet_length(hash) <= 256 and (hash = lower(hash) or left(hash, 2) not in ('0x', '0X') or right(hash, 1) = '='))
);

create table token_events (
    chain_id bigint not null,
    height bigint not null,
    tx_index bigint not null,
    event_index bigint not null,
    token text collate "C" not null,
    from_address text collate "C",
    to_address text collate "C",
    amount numeric(78, 0) not null,
    kind text collate "C" not null generated always as (
        case when from_address is null then 'mint' when to_address is null then 'burn' else 'transfer' end) stored,
    constraint token_events_pkey primary key (chain_id, height, tx_index, event_index),
    constraint token_events_position_is_not_negative check (height >= 0 and tx_index >= 0 and event_index >= 0),
    constraint token_events_amount_is_0_to_below_2_to_the_256 check (
        amount >= 0 and amount < 115792089237316195423570985008687907853269984665640564039457584007913129639936),
    constraint token_events_name_a_sender_or_a_receiver check (from_address is not null or to_address is not null),
    -- That hex is in lower case is looked at by a trigger (`spelt`): as checks it was a quarter of the cost of loading.
    constraint token_events_token_is_1_to_512_bytes check (octet_length(token) between 1 and 512),
    constraint token_events_from_is_1_to_512_bytes check (octet_length(from_address) between 1 and 512),
    constraint token_events_to_is_1_to_512_bytes check (octet_length(to_address) between 1 and 512)
);
comment on table token_events is 'Token movements; no from_address: mint, no to_address: burn. Amounts in base units.';

create table events (
    chain_id bigint not null,
    height bigint not null,
    tx_index bigint not null,
    event_index bigint not null,
    emitter text collate "C" not null,
    name text collate "C" not null,
    keys text[] collate "C" not null default '{}',
    data text[] collate "C" not null default '{}',
    attributes jsonb not null default '{}',
    constraint events_pkey primary key (chain_id, height, tx_index, event_index),
    constraint events_position_is_not_negative check (height >= 0 and tx_index >= 0 and event_index >= 0),
    constraint events_emitter_is_1_to_512_bytes_hex_in_lower_case check (
        octet_length(emitter) between 1 and 512 and (emitter = lower(emitter) or left(emitter, 2) not in ('0x', '0X')))
);
-- Announcements of tokens are few, and asked for by token: see the view token_announcements. Cut to the longest id there is:
-- what an index can hold must not decide which events can be stored.
create index events_announcements on events (chain_id, left(attributes ->> 'token', 256)) where name = 'NewToken';
comment on table events is 'All that is not a token movement.';

create table opening_balances (
    chain_id bigint not null,
    token text collate "C" not null,
    address text collate "C" not null,
    amount numeric not null,
    constraint opening_balances_pkey primary key (chain_id, token, address),
    constraint opening_balances_chain_is_known foreign key (chain_id) references chains,
    constraint opening_balances_amount_is_a_whole_number check (
        amount = trunc(amount) and amount < 'Infinity' and amount > '-Infinity'),
    constraint opening_balances_token_is_1_to_512_bytes_hex_in_lower_case check (
        octet_length(token) between 1 and 512 and (token = lower(token) or left(token, 2) not in ('0x', '0X'))),
    constraint opening_balances_address_is_1_to_512_bytes_hex_in_lower_case check (
        octet_length(address) between 1 and 512 and (address = lower(address) or left(address, 2) not in ('0x', '0X')))
);
comment on table opening_balances is 'What stood before the start height; applied before the first block.';

create table token_metadata (
    chain_id bigint not null,
    token text collate "C" not null,
    symbol text,
    name text,
    decimals smallint,
    constraint token_metadata_pkey primary key (chain_id, token),
    constraint token_metadata_chain_is_known foreign key (chain_id) references chains,
    constraint token_metadata_decimals_is_0_to_255 check (decimals between 0 and 255)
);
comment on table token_metadata is 'Tokens as their contracts describe themselves; read once, never applied to amounts.';

create table orphaned_blocks (
    id bigint generated always as identity,
    chain_id bigint not null,
    height bigint not null,
    hash text collate "C" not null,
    parent_hash text collate "C" not null,
    time timestamptz,
    transactions jsonb not null,
    token_events jsonb not null,
    events jsonb not null,
    replaced_at timestamptz not null default now(),
    constraint orphaned_blocks_pkey primary key (id)
);
create index orphaned_blocks_hash on orphaned_blocks (chain_id, hash);
comment on table orphaned_blocks is 'Blocks that were replaced or deleted, with what they held: evidence is never destroyed.';

create table rejected_events (
    chain_id bigint not null,
    height bigint not null,
    tx_index bigint not null,
    event_index bigint not null,
    projection text collate "C" not null,
    block_hash text collate "C" not null,
    raw jsonb not null,
    reason text not null,
    at timestamptz not null default now(),
    constraint rejected_events_pkey primary key (chain_id, height, tx_index, event_index, projection)
);
comment on table rejected_events is 'Events that could not be taken in (projection source) or applied (the projection that refused them).';
