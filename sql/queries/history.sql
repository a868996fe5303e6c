-- Token events before the position ($2, $3, $4), from height $5 up, newest first. Those of blocks that are not applied
-- as they stand come out without a block hash, so that the reader knows how far the walk went: where the journal
-- holds a height, hash and revision must be the journal's; where it does not, heights below $6 are applied.
select e.height, e.tx_index, e.event_index, e.token, e.from_address, e.to_address, e.amount::text as amount, e.kind,
    b.hash as block_hash, b.time, x.hash as tx_hash
from (
    select t.*, t.kind
    from token_events t
    where chain_id = $1 and height >= $5 and (height, tx_index, event_index) < ($2, $3, $4)
    order by height desc, tx_index desc, event_index desc
    limit $8
) e
left join lateral (
    select b.hash, b.time
    from blocks b
    left join applied_blocks a on a.chain_id = $1 and a.projection = 'token_balances' and a.height = b.height
    where b.chain_id = $1 and b.height = e.height
      and case when a.height is null then b.height < $6 else a.hash = b.hash and a.revision = b.revision end
    limit 1
) b on true
left join lateral (
    select t.hash from transactions t where t.chain_id = $1 and t.height = e.height and t.tx_index = e.tx_index and $7
) x on true
order by e.height desc, e.tx_index desc, e.event_index desc
