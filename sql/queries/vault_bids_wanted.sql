-- All bids of some rounds ($2), and single ones ($3, $4: round, bid).
select b.*
from option_bids b
where b.chain_id = $1 and b.round_address = any ($2::text[])
union all
select b.*
from unnest($3::text[], $4::text[]) as w (round_address, bid_id)
cross join lateral (
    select b.* from option_bids b
    where b.chain_id = $1 and b.round_address = w.round_address and b.bid_id = w.bid_id limit 1
) b
