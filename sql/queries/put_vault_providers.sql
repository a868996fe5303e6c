-- Providers as a block ($2, $3) left them, and their history.
with written as (
    insert into liquidity_providers (
        chain_id, vault_address, address, unlocked_balance, locked_balance, stashed_balance, start_liquidity,
        latest_block, latest_block_hash)
    select $1, w.*, $2::bigint, $3::text
    from unnest(
        $4::text[], $5::text[], $6::numeric[], $7::numeric[], $8::numeric[], $9::numeric[]) as w
    on conflict (chain_id, vault_address, address) do update
    set unlocked_balance = excluded.unlocked_balance, locked_balance = excluded.locked_balance,
        stashed_balance = excluded.stashed_balance, start_liquidity = excluded.start_liquidity,
        latest_block = excluded.latest_block, latest_block_hash = excluded.latest_block_hash
    returning vault_address, address, unlocked_balance, locked_balance, stashed_balance
)
insert into liquidity_provider_history (
    chain_id, vault_address, address, height, block_hash, unlocked_balance, locked_balance, stashed_balance)
select $1, vault_address, address, $2, $3, unlocked_balance, locked_balance, stashed_balance
from written
