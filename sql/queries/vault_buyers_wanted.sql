-- All buyers of some rounds ($2), and single ones ($3, $4: round, address).
select b.*
from unnest($2::text[]) as w (round_address)
join option_buyers b on b.chain_id = $1 and b.round_address = w.round_address
union all
select b.*
from unnest($3::text[], $4::text[]) as w (round_address, address)
join option_buyers b on b.chain_id = $1 and b.round_address = w.round_address and b.address = w.address
