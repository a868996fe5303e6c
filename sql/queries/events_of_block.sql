-- The events of one block, in the order of the chain.
select e.height, e.tx_index, e.event_index, e.emitter, e.name, e.keys, e.data, e.attributes
from events e
where e.chain_id = $1 and e.height = $2
order by e.tx_index, e.event_index
