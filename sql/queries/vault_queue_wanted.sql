-- All queued for some rounds ($2), and single ones ($3 to $5: vault, round's number, provider).
select q.*
from unnest($2::text[]) as w (round_address)
join queued_liquidity q on q.chain_id = $1 and q.round_address = w.round_address
union all
select q.*
from unnest($3::text[], $4::numeric[], $5::text[]) as w (vault_address, round_id, address)
join option_rounds r on r.chain_id = $1 and r.vault_address = w.vault_address and r.round_id = w.round_id
join queued_liquidity q on q.chain_id = $1 and q.round_address = r.address and q.address = w.address
