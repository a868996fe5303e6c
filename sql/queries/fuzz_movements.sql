-- The newest token movements of a chain.
select token, from_address, to_address, amount::text as amount
from token_events
where chain_id = $1::bigint
order by height desc, tx_index desc, event_index desc
limit 400
