-- Bids as a block ($2, $3) left them.
insert into option_bids (
    chain_id, vault_address, round_address, bid_id, buyer_address, tree_nonce, amount, price, latest_block,
    latest_block_hash)
select $1, w.*, $2::bigint, $3::text
from unnest(
    $4::text[], $5::text[], $6::text[], $7::text[], $8::numeric[], $9::numeric[], $10::numeric[]) as w
on conflict (chain_id, round_address, bid_id) do update
set vault_address = excluded.vault_address, buyer_address = excluded.buyer_address,
    tree_nonce = excluded.tree_nonce, amount = excluded.amount, price = excluded.price,
    latest_block = excluded.latest_block, latest_block_hash = excluded.latest_block_hash
