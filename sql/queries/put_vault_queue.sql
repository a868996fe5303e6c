-- Queued withdrawals as a block ($2, $3) left them.
insert into queued_liquidity (
    chain_id, vault_address, round_address, address, bps, queued_liquidity, latest_block, latest_block_hash)
select $1, w.*, $2::bigint, $3::text
from unnest(
    $4::text[], $5::text[], $6::text[], $7::numeric[], $8::numeric[]) as w
on conflict (chain_id, round_address, address) do update
set vault_address = excluded.vault_address, bps = excluded.bps, queued_liquidity = excluded.queued_liquidity,
    latest_block = excluded.latest_block, latest_block_hash = excluded.latest_block_hash
