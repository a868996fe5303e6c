-- The account's token events before the position ($4, $5, $6) in the blocks at these heights (given newest first), of
-- blocks that are applied as they stand (see history.sql; $7 as its $6). Stops once there are enough.
select e.height, e.tx_index, e.event_index, e.token, e.from_address, e.to_address, e.amount::text as amount, e.kind,
    b.hash as block_hash, b.time, x.hash as tx_hash
from unnest($2::bigint[]) with ordinality h(height, place)
cross join lateral (
    select b.hash, b.time
    from blocks b
    left join applied_blocks a on a.chain_id = $1 and a.projection = 'token_balances' and a.height = b.height
    where b.chain_id = $1 and b.height = h.height
      and case when a.height is null then b.height < $7 else a.hash = b.hash and a.revision = b.revision end
    limit 1
) b
cross join lateral (
    select e.*, e.kind
    from token_events e
    where e.chain_id = $1 and e.height = h.height
      and (e.height, e.tx_index, e.event_index) < ($4, $5, $6)
      and (e.from_address = $3 or e.to_address = $3)
    offset 0
) e
left join lateral (
    select t.hash from transactions t where t.chain_id = $1 and t.height = e.height and t.tx_index = e.tx_index and $8
) x on true
order by h.place, e.tx_index desc, e.event_index desc
limit $9
