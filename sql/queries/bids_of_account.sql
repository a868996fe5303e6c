-- Bids of the account $2 after the bid $4 of the round $3.
select b.*
from option_bids b
where b.chain_id = $1 and b.buyer_address = $2 and (b.round_address, b.bid_id) > ($3, $4)
order by b.round_address, b.bid_id
limit $5
