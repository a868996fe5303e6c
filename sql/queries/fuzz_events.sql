-- The newest other events of a chain, as put_block takes them.
select jsonb_build_object('emitter', emitter, 'name', name, 'keys', keys, 'data', data, 'attributes', attributes) as event
from events
where chain_id = $1::bigint
order by height desc, tx_index desc, event_index desc
limit 400
