-- Providers ($4 to $9) as blocks ($2, $3: heights, hashes) left them, and their history ($10 to $16) at each block.
with history as (
    insert into liquidity_provider_history (
        height, block_hash, vault_address, address, unlocked_balance, locked_balance, stashed_balance, chain_id)
    select h.*, $1
    from unnest(
        $10::bigint[], $11::text[], $12::text[], $13::text[], $14::numeric[], $15::numeric[], $16::numeric[]) as h
)
insert into liquidity_providers (
    latest_block, latest_block_hash, vault_address, address, unlocked_balance, locked_balance, stashed_balance,
    start_liquidity, chain_id)
select w.*, $1
from unnest(
    $2::bigint[], $3::text[], $4::text[], $5::text[], $6::numeric[], $7::numeric[], $8::numeric[], $9::numeric[]) as w
on conflict (chain_id, vault_address, address) do update
set unlocked_balance = excluded.unlocked_balance, locked_balance = excluded.locked_balance,
    stashed_balance = excluded.stashed_balance, start_liquidity = excluded.start_liquidity,
    latest_block = excluded.latest_block, latest_block_hash = excluded.latest_block_hash
