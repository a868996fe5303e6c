-- Buyers of the round $2 after $3.
select t.*
from option_buyers t
where t.chain_id = $1 and t.round_address = $2 and t.address > $3
order by t.address
limit $4
