-- All buyers of some rounds ($2), and single ones ($3, $4: round, address).
select b.*
from option_buyers b
where b.chain_id = $1 and b.round_address = any ($2::text[])
union all
select b.*
from unnest($3::text[], $4::text[]) as w (round_address, address)
cross join lateral (
    select b.* from option_buyers b
    where b.chain_id = $1 and b.round_address = w.round_address and b.address = w.address limit 1
) b
