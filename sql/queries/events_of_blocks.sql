-- The events of the blocks from one height ($2) to another ($3), in the order of the chain, with the blocks' times in seconds
-- since 1970. Events of a height without a block do not count.
select e.height, e.tx_index, e.event_index, e.emitter, e.name, e.keys, e.data, e.attributes,
    extract(epoch from b.time)::bigint as block_time
from events e
join blocks b on b.chain_id = e.chain_id and b.height = e.height
where e.chain_id = $1 and e.height between $2 and $3
order by e.height, e.tx_index, e.event_index
