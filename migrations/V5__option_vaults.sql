-- Numbers that the option vaults' contracts declare as u64 use all 64 bits, and bigint holds 63 of them.
alter table vaults
    drop constraint vaults_counters_are_not_negative,
    alter column current_round type numeric(20, 0),
    alter column round_transition_period type numeric(20, 0),
    alter column auction_duration type numeric(20, 0),
    alter column round_duration type numeric(20, 0),
    add constraint vaults_counters_are_u64 check (
        least(current_round, round_transition_period, auction_duration, round_duration) >= 0
        and greatest(current_round, round_transition_period, auction_duration, round_duration) < 18446744073709551616),
    add constraint vaults_latest_block_is_not_negative check (latest_block >= 0);
alter table option_rounds
    drop constraint option_rounds_counters_are_not_negative,
    alter column round_id type numeric(20, 0),
    alter column start_date type numeric(20, 0),
    alter column end_date type numeric(20, 0),
    alter column settlement_date type numeric(20, 0),
    add constraint option_rounds_counters_are_u64 check (
        least(round_id, start_date, end_date, settlement_date) >= 0
        and greatest(round_id, start_date, end_date, settlement_date) < 18446744073709551616),
    add constraint option_rounds_latest_block_is_not_negative check (latest_block >= 0);
alter table option_bids
    drop constraint option_bids_counters_are_not_negative,
    alter column tree_nonce type numeric(20, 0),
    add constraint option_bids_tree_nonce_is_u64 check (tree_nonce >= 0 and tree_nonce < 18446744073709551616),
    add constraint option_bids_latest_block_is_not_negative check (latest_block >= 0);

-- What undo there is has the types of before: it goes, and the vaults are applied again from their events.
update checkpoints set redo_from = 0 where projection = 'option_vaults' and height is not null;
delete from applied_blocks where projection = 'option_vaults';
do $$
declare t record;
begin
    for t in select id from tracked_tables where projection = 'option_vaults' loop
        execute format('delete from undo_%s', t.id);
    end loop;
end $$;
update tracked_tables set shape = '' where projection = 'option_vaults';

-- Whom events of contracts that are being caught up do not concern yet: see events_touched.
alter table projections add column ignores_catching_up boolean not null default false;
comment on column projections.ignores_catching_up is
    'Events stored while a contract is being caught up do not concern it: what the source tells it afterwards does.';

-- A replay says nothing about the chain: what was applied keeps its name meanwhile.
alter table checkpoints add column changed_from bigint, add column changed_seq bigint;
comment on column checkpoints.changed_from is
    'Internal: the chain changed from this height on, where nothing is journaled, and was not applied again since (while seq is changed_seq).';
