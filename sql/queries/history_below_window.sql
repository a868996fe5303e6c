-- Token events before the position ($2, $3, $4), newest first, where every block present is applied. Events without a
-- block row do not count: they come out without a block hash, so that the reader knows how far the walk went.
select e.height, e.tx_index, e.event_index, e.token, e.from_address, e.to_address, e.amount::text as amount, e.kind,
    b.hash as block_hash, b.time, x.hash as tx_hash
from (
    select *
    from token_events
    where chain_id = $1 and (height, tx_index, event_index) < ($2, $3, $4)
    order by height desc, tx_index desc, event_index desc
    limit $6
) e
left join lateral (
    select b.hash, b.time from blocks b where b.chain_id = $1 and b.height = e.height
) b on true
left join lateral (
    select t.hash from transactions t where t.chain_id = $1 and t.height = e.height and t.tx_index = e.tx_index and $5
) x on true
order by e.height desc, e.tx_index desc, e.event_index desc
