-- Bids as blocks ($2, $3: heights, hashes) left them.
insert into option_bids (
    latest_block, latest_block_hash, vault_address, round_address, bid_id, buyer_address, tree_nonce, amount,
    price, chain_id)
select w.*, $1
from unnest(
    $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::numeric[], $9::numeric[],
    $10::numeric[]) as w
on conflict (chain_id, round_address, bid_id) do update
set vault_address = excluded.vault_address, buyer_address = excluded.buyer_address,
    tree_nonce = excluded.tree_nonce, amount = excluded.amount, price = excluded.price,
    latest_block = excluded.latest_block, latest_block_hash = excluded.latest_block_hash
