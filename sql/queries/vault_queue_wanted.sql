-- All queued for some rounds ($2), and single ones ($3 to $5: vault, round's number, provider).
select q.*
from queued_liquidity q
where q.chain_id = $1 and q.round_address = any ($2::text[])
union all
select q.*
from unnest($3::text[], $4::numeric[], $5::text[]) as w (vault_address, round_id, address)
cross join lateral (
    select r.address from option_rounds r
    where r.chain_id = $1 and r.vault_address = w.vault_address and r.round_id = w.round_id limit 1
) r
cross join lateral (
    select q.* from queued_liquidity q
    where q.chain_id = $1 and q.round_address = r.address and q.address = w.address limit 1
) q
