-- Buyers as blocks ($2, $3: heights, hashes) left them.
insert into option_buyers (
    latest_block, latest_block_hash, vault_address, round_address, address, has_minted, has_refunded,
    mintable_options, refundable_amount, chain_id)
select w.*, $1
from unnest(
    $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::boolean[], $8::boolean[], $9::numeric[],
    $10::numeric[]) as w
on conflict (chain_id, round_address, address) do update
set vault_address = excluded.vault_address, has_minted = excluded.has_minted,
    has_refunded = excluded.has_refunded, mintable_options = excluded.mintable_options,
    refundable_amount = excluded.refundable_amount, latest_block = excluded.latest_block,
    latest_block_hash = excluded.latest_block_hash
