-- Vaults as a block ($2, $3) left them, and their history. A second row of history for one height is an error: undo
-- takes it back with its block.
with written as (
    insert into vaults (
        chain_id, address, layout, unlocked_balance, locked_balance, stashed_balance, current_round,
        current_round_address, fossil_client_address, eth_address, option_round_class_hash, alpha, strike_level,
        round_transition_period, auction_duration, round_duration, deployment_date, latest_block,
        latest_block_hash)
    select $1, w.*, $2::bigint, $3::text
    from unnest(
        $4::text[], $5::text[], $6::numeric[], $7::numeric[], $8::numeric[], $9::numeric[], $10::text[],
        $11::text[], $12::text[], $13::text[], $14::numeric[], $15::numeric[], $16::numeric[], $17::numeric[],
        $18::numeric[], $19::bigint[]) as w
    on conflict (chain_id, address) do update
    set layout = excluded.layout, unlocked_balance = excluded.unlocked_balance,
        locked_balance = excluded.locked_balance, stashed_balance = excluded.stashed_balance,
        current_round = excluded.current_round, current_round_address = excluded.current_round_address,
        fossil_client_address = excluded.fossil_client_address, eth_address = excluded.eth_address,
        option_round_class_hash = excluded.option_round_class_hash, alpha = excluded.alpha,
        strike_level = excluded.strike_level, round_transition_period = excluded.round_transition_period,
        auction_duration = excluded.auction_duration, round_duration = excluded.round_duration,
        deployment_date = excluded.deployment_date, latest_block = excluded.latest_block,
        latest_block_hash = excluded.latest_block_hash
    returning address, unlocked_balance, locked_balance, stashed_balance
)
insert into vault_history (
    chain_id, address, height, block_hash, unlocked_balance, locked_balance, stashed_balance)
select $1, address, $2, $3, unlocked_balance, locked_balance, stashed_balance
from written
