-- Vaults ($4 to $19) as blocks ($2, $3: heights, hashes) left them, and their history ($20 to $25) at each block. A second row
-- of history for one height is an error: undo takes it back with its block.
with history as (
    insert into vault_history (
        height, block_hash, address, unlocked_balance, locked_balance, stashed_balance, chain_id)
    select h.*, $1
    from unnest($20::bigint[], $21::text[], $22::text[], $23::numeric[], $24::numeric[], $25::numeric[]) as h
)
insert into vaults (
    latest_block, latest_block_hash, address, layout, unlocked_balance, locked_balance, stashed_balance, current_round,
    current_round_address, fossil_client_address, eth_address, option_round_class_hash, alpha, strike_level,
    round_transition_period, auction_duration, round_duration, deployment_date, chain_id)
select w.*, $1
from unnest(
    $2::bigint[], $3::text[], $4::text[], $5::text[], $6::numeric[], $7::numeric[], $8::numeric[], $9::numeric[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::numeric[], $15::numeric[], $16::numeric[], $17::numeric[],
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
