-- Events that were refused, in chain order: of one chain ($1), by one projection ($2), for one reason ($3), null
-- for any; the first $4 of them, with how many there are.
select c.name as chain, r.projection, r.height, r.block_hash, r.tx_index, r.event_index, r.reason, r.raw, r.at,
    count(*) over () as matching
from rejected_events r
join chains c on c.chain_id = r.chain_id
where ($1::bigint is null or r.chain_id = $1)
  and ($2::text is null or r.projection = $2)
  and ($3::text is null or r.reason = $3)
order by c.name, r.height, r.tx_index, r.event_index, r.projection
limit $4
