-- Token events before the position ($2, $3, $4), newest first, of blocks whose undo is kept: only those that are
-- applied as they stand, hash and revision. A block that was replaced or edited is hidden until it is applied again.
select e.height, e.tx_index, e.event_index, e.token, e.from_address, e.to_address, e.amount::text as amount, e.kind,
    b.hash as block_hash, b.time, x.hash as tx_hash
from applied_blocks a
cross join lateral (
    select b.hash, b.time
    from blocks b
    where b.chain_id = $1 and b.height = a.height and b.hash = a.hash and b.revision = a.revision
    offset 0
) b
cross join lateral (
    select e.*
    from token_events e
    where e.chain_id = $1 and e.height = a.height and (e.height, e.tx_index, e.event_index) < ($2, $3, $4)
    offset 0
) e
left join lateral (
    select t.hash from transactions t where t.chain_id = $1 and t.height = e.height and t.tx_index = e.tx_index and $5
) x on true
where a.chain_id = $1 and a.projection = 'token_balances' and a.height <= $2
order by a.height desc, e.tx_index desc, e.event_index desc
limit $6
