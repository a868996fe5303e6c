-- Queued withdrawals as blocks ($2, $3: heights, hashes) left them.
insert into queued_liquidity (
    latest_block, latest_block_hash, vault_address, round_address, address, bps, queued_liquidity, chain_id)
select w.*, $1
from unnest(
    $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::numeric[], $8::numeric[]) as w
on conflict (chain_id, round_address, address) do update
set vault_address = excluded.vault_address, bps = excluded.bps, queued_liquidity = excluded.queued_liquidity,
    latest_block = excluded.latest_block, latest_block_hash = excluded.latest_block_hash
