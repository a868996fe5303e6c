-- Bids of the round $2 after $3.
select t.*
from option_bids t
where t.chain_id = $1 and t.round_address = $2 and t.bid_id > $3
order by t.bid_id
limit $4
