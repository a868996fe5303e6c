-- Token movements of a run of blocks, in the order of the primary key.
select height, tx_index, event_index, token, from_address, to_address, amount
from token_events
where chain_id = $1 and height >= $2 and height <= $3
order by chain_id, height, tx_index, event_index
