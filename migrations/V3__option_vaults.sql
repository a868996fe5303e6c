-- Option vaults: what follows from their events, and which of them are followed. Felts (addresses, hashes, ids) stand in
-- canonical text: 0x hex in lower case without leading zeros. Amounts are below 2^256.
--
-- Rows come and go with their blocks. References between the tables are checked at the commit, and the numbers of rounds
-- at the end of a statement: undo may restore the tables in any order.

create table vault_registry (
    chain_id bigint not null,
    address text collate "C" not null,
    layout text collate "C" not null,
    from_height bigint,
    indexed_through bigint,
    caught_up boolean not null default false,
    registered_at timestamptz not null default now(),
    constraint vault_registry_pkey primary key (chain_id, address),
    constraint vault_registry_address_is_a_felt_in_canonical_text check (
        address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'),
    constraint vault_registry_counters_are_not_negative check (
        least(from_height, indexed_through) >= 0),
    constraint vault_registry_chain_is_known foreign key (chain_id) references chains,
    constraint vault_registry_layout_is_known check (layout in ('a', 'b'))
);
comment on table vault_registry is 'Vaults to follow. People write it: one row, and the vault is followed from its deployment on, however long ago.';
comment on column vault_registry.layout is
    'Which contract speaks: a, each round for itself; b, the vault for all. Never guessed.';
comment on column vault_registry.from_height is
    'First height whose events count, at most that of its deployment; null: all that is stored.';
comment on column vault_registry.indexed_through is
    'Up to here the source has stored the events of this vault and its rounds; null: of none. Below the tip: it is being caught up.';
comment on column vault_registry.caught_up is
    'Whether the source has once come up to the tip: until then the vault does not count, so that nobody sees half a history. Of no meaning where no source picks events by contract (psql, a file): there a vault counts at once.';

create table vaults (
    chain_id bigint not null,
    address text collate "C" not null,
    layout text collate "C" not null,
    unlocked_balance numeric(78, 0) not null default 0,
    locked_balance numeric(78, 0) not null default 0,
    stashed_balance numeric(78, 0) not null default 0,
    current_round bigint,
    current_round_address text collate "C",
    fossil_client_address text collate "C",
    eth_address text collate "C",
    option_round_class_hash text collate "C",
    alpha numeric(78, 0),
    strike_level numeric(78, 0),
    round_transition_period bigint,
    auction_duration bigint,
    round_duration bigint,
    deployment_date bigint,
    latest_block bigint not null,
    latest_block_hash text collate "C" not null,
    constraint vaults_pkey primary key (chain_id, address),
    constraint vaults_felts_are_in_canonical_text check (
        address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and current_round_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and fossil_client_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and eth_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and option_round_class_hash ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'),
    constraint vaults_amounts_are_0_to_below_2_to_the_256 check (
        least(unlocked_balance, locked_balance, stashed_balance) >= 0
        and greatest(unlocked_balance, locked_balance, stashed_balance)
            < 115792089237316195423570985008687907853269984665640564039457584007913129639936),
    constraint vaults_counters_are_not_negative check (
        least(current_round, round_transition_period, auction_duration, round_duration, latest_block) >= 0),
    constraint vaults_layout_is_known check (layout in ('a', 'b')),
    constraint vaults_alpha_is_0_to_below_2_to_the_128 check (
        alpha >= 0 and alpha < 340282366920938463463374607431768211456),
    constraint vaults_strike_level_is_an_i128 check (
        strike_level >= -170141183460469231731687303715884105728
        and strike_level < 170141183460469231731687303715884105728),
    constraint vaults_round_has_number_and_address check ((current_round is null) = (current_round_address is null))
) with (fillfactor = 70);
comment on table vaults is 'Option vaults: their three balances and the newest round.';
comment on column vaults.layout is 'The layout its events were read by.';
comment on column vaults.alpha is 'Null, as all that a deployment says, where the deployment was not seen.';
comment on column vaults.strike_level is 'Signed: how far the strike lies from the price, in basis points.';
comment on column vaults.deployment_date is
    'Time of the deployment''s block in seconds since 1970; null: the block has none.';
comment on column vaults.latest_block is 'Height of the last change.';

create table vault_history (
    chain_id bigint not null,
    address text collate "C" not null,
    height bigint not null,
    block_hash text collate "C" not null,
    unlocked_balance numeric(78, 0) not null default 0,
    locked_balance numeric(78, 0) not null default 0,
    stashed_balance numeric(78, 0) not null default 0,
    constraint vault_history_pkey primary key (chain_id, address, height),
    constraint vault_history_address_is_a_felt_in_canonical_text check (
        address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'),
    constraint vault_history_amounts_are_0_to_below_2_to_the_256 check (
        least(unlocked_balance, locked_balance, stashed_balance) >= 0
        and greatest(unlocked_balance, locked_balance, stashed_balance)
            < 115792089237316195423570985008687907853269984665640564039457584007913129639936),
    constraint vault_history_height_is_not_negative check (height >= 0)
);
comment on table vault_history is 'The balances of each vault after each block that changed its row, the first one included.';

create table liquidity_providers (
    chain_id bigint not null,
    vault_address text collate "C" not null,
    address text collate "C" not null,
    unlocked_balance numeric(78, 0) not null default 0,
    locked_balance numeric(78, 0) not null default 0,
    stashed_balance numeric(78, 0) not null default 0,
    start_liquidity numeric(78, 0) not null default 0,
    latest_block bigint not null,
    latest_block_hash text collate "C" not null,
    constraint liquidity_providers_pkey primary key (chain_id, vault_address, address),
    constraint liquidity_providers_felts_are_in_canonical_text check (
        vault_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'),
    constraint liquidity_providers_amounts_are_0_to_below_2_to_the_256 check (
        least(unlocked_balance, locked_balance, stashed_balance, start_liquidity) >= 0
        and greatest(unlocked_balance, locked_balance, stashed_balance, start_liquidity)
            < 115792089237316195423570985008687907853269984665640564039457584007913129639936),
    constraint liquidity_providers_latest_block_is_not_negative check (latest_block >= 0)
) with (fillfactor = 70);
create index liquidity_providers_account on liquidity_providers (chain_id, address, vault_address);
comment on table liquidity_providers is 'What each provider has in a vault.';
comment on column liquidity_providers.start_liquidity is
    'Unlocked at the instant the running auction started: what shares are floors of. 0 between rounds.';
comment on column liquidity_providers.latest_block is 'Height of the last change.';

create table liquidity_provider_history (
    chain_id bigint not null,
    vault_address text collate "C" not null,
    address text collate "C" not null,
    height bigint not null,
    block_hash text collate "C" not null,
    unlocked_balance numeric(78, 0) not null default 0,
    locked_balance numeric(78, 0) not null default 0,
    stashed_balance numeric(78, 0) not null default 0,
    constraint liquidity_provider_history_pkey primary key (chain_id, vault_address, address, height),
    constraint liquidity_provider_history_felts_are_in_canonical_text check (
        vault_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'),
    constraint liquidity_provider_history_amounts_are_0_to_below_2_to_the_256 check (
        least(unlocked_balance, locked_balance, stashed_balance) >= 0
        and greatest(unlocked_balance, locked_balance, stashed_balance)
            < 115792089237316195423570985008687907853269984665640564039457584007913129639936),
    constraint liquidity_provider_history_height_is_not_negative check (height >= 0)
);
comment on table liquidity_provider_history is 'The balances of each provider after each block that changed the row, the first one included.';

create table option_rounds (
    chain_id bigint not null,
    address text collate "C" not null,
    vault_address text collate "C" not null,
    round_id bigint not null,
    state text collate "C" not null,
    start_date bigint not null,
    end_date bigint not null,
    settlement_date bigint not null,
    deployment_date bigint,
    strike_price numeric(78, 0) not null default 0,
    cap_level numeric(78, 0) not null default 0,
    reserve_price numeric(78, 0) not null default 0,
    available_options numeric(78, 0) not null default 0,
    starting_liquidity numeric(78, 0) not null default 0,
    queued_liquidity numeric(78, 0) not null default 0,
    sold_options numeric(78, 0) not null default 0,
    clearing_price numeric(78, 0) not null default 0,
    premiums numeric(78, 0) not null default 0,
    unsold_liquidity numeric(78, 0) not null default 0,
    settlement_price numeric(78, 0) not null default 0,
    payout_per_option numeric(78, 0) not null default 0,
    remaining_liquidity numeric(78, 0) not null default 0,
    latest_block bigint not null,
    latest_block_hash text collate "C" not null,
    constraint option_rounds_pkey primary key (chain_id, address),
    constraint option_rounds_felts_are_in_canonical_text check (
        address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and vault_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'),
    constraint option_rounds_amounts_are_0_to_below_2_to_the_256 check (
        least(strike_price, cap_level, reserve_price, available_options, starting_liquidity, queued_liquidity,
            sold_options, clearing_price, premiums, unsold_liquidity, settlement_price, payout_per_option,
            remaining_liquidity) >= 0
        and greatest(strike_price, cap_level, reserve_price, available_options, starting_liquidity, queued_liquidity,
            sold_options, clearing_price, premiums, unsold_liquidity, settlement_price, payout_per_option,
            remaining_liquidity)
            < 115792089237316195423570985008687907853269984665640564039457584007913129639936),
    constraint option_rounds_counters_are_not_negative check (
        least(round_id, start_date, end_date, settlement_date, latest_block) >= 0),
    constraint option_rounds_vault_has_one_of_each_number unique (chain_id, vault_address, round_id) deferrable,
    constraint option_rounds_vault_is_known foreign key (chain_id, vault_address) references vaults
        deferrable initially deferred,
    constraint option_rounds_state_is_known check (state in ('Open', 'Auctioning', 'Running', 'Settled'))
) with (fillfactor = 70);
comment on table option_rounds is 'Rounds of the vaults, from deployment to settlement.';
comment on column option_rounds.start_date is
    'The auction''s start; as its end and the settlement in seconds since 1970.';
comment on column option_rounds.premiums is 'sold_options times clearing_price.';
comment on column option_rounds.remaining_liquidity is
    'starting_liquidity less what was not sold and what was paid out.';
comment on column option_rounds.latest_block is 'Height of the last change.';

create table queued_liquidity (
    chain_id bigint not null,
    vault_address text collate "C" not null,
    round_address text collate "C" not null,
    address text collate "C" not null,
    bps numeric(78, 0) not null default 0,
    queued_liquidity numeric(78, 0) not null default 0,
    latest_block bigint not null,
    latest_block_hash text collate "C" not null,
    constraint queued_liquidity_pkey primary key (chain_id, round_address, address),
    constraint queued_liquidity_felts_are_in_canonical_text check (
        vault_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and round_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'),
    constraint queued_liquidity_amounts_are_0_to_below_2_to_the_256 check (
        least(bps, queued_liquidity) >= 0
        and greatest(bps, queued_liquidity)
            < 115792089237316195423570985008687907853269984665640564039457584007913129639936),
    constraint queued_liquidity_latest_block_is_not_negative check (latest_block >= 0),
    constraint queued_liquidity_round_is_known foreign key (chain_id, round_address) references option_rounds
        deferrable initially deferred
);
comment on table queued_liquidity is 'What providers asked to take out at a round''s settlement.';
comment on column queued_liquidity.bps is 'The part that was asked for, in basis points.';
comment on column queued_liquidity.queued_liquidity is 'Of the liquidity at the start of the round.';

create table option_buyers (
    chain_id bigint not null,
    vault_address text collate "C" not null,
    round_address text collate "C" not null,
    address text collate "C" not null,
    has_minted boolean not null default false,
    has_refunded boolean not null default false,
    mintable_options numeric(78, 0) not null default 0,
    refundable_amount numeric(78, 0) not null default 0,
    latest_block bigint not null,
    latest_block_hash text collate "C" not null,
    constraint option_buyers_pkey primary key (chain_id, round_address, address),
    constraint option_buyers_felts_are_in_canonical_text check (
        vault_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and round_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'),
    constraint option_buyers_amounts_are_0_to_below_2_to_the_256 check (
        least(mintable_options, refundable_amount) >= 0
        and greatest(mintable_options, refundable_amount)
            < 115792089237316195423570985008687907853269984665640564039457584007913129639936),
    constraint option_buyers_latest_block_is_not_negative check (latest_block >= 0),
    constraint option_buyers_round_is_known foreign key (chain_id, round_address) references option_rounds
        deferrable initially deferred
) with (fillfactor = 70);
create index option_buyers_account on option_buyers (chain_id, address, round_address);
comment on table option_buyers is 'Who bid in a round. The amounts are entitlements, fixed when the auction ends; the flags say that they were used.';

create table option_bids (
    chain_id bigint not null,
    vault_address text collate "C" not null,
    round_address text collate "C" not null,
    bid_id text collate "C" not null,
    buyer_address text collate "C" not null,
    tree_nonce bigint not null,
    amount numeric(78, 0) not null default 0,
    price numeric(78, 0) not null default 0,
    latest_block bigint not null,
    latest_block_hash text collate "C" not null,
    constraint option_bids_pkey primary key (chain_id, round_address, bid_id),
    constraint option_bids_felts_are_in_canonical_text check (
        vault_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and round_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and bid_id ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
        and buyer_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'),
    constraint option_bids_amounts_are_0_to_below_2_to_the_256 check (
        least(amount, price) >= 0
        and greatest(amount, price)
            < 115792089237316195423570985008687907853269984665640564039457584007913129639936),
    constraint option_bids_counters_are_not_negative check (
        least(tree_nonce, latest_block) >= 0),
    constraint option_bids_round_is_known foreign key (chain_id, round_address) references option_rounds
        deferrable initially deferred
) with (fillfactor = 70);
create index option_bids_account on option_bids (chain_id, buyer_address, round_address, bid_id);
comment on table option_bids is 'The bids of a round.';
comment on column option_bids.tree_nonce is
    'Its place among bids of one price: lower wins. A raised bid gets a new one.';
