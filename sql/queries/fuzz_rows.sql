-- The rows of many blocks, in the order given, which becomes the order in which they lie.
with transactions_put as (
    insert into transactions (chain_id, height, tx_index, hash, success)
    select $1, t.height, t.tx_index, t.hash, t.success
    from jsonb_to_recordset($2::jsonb) as t (height bigint, tx_index bigint, hash text, success boolean)
), token_events_put as (
    insert into token_events (chain_id, height, tx_index, event_index, token, from_address, to_address, amount)
    select $1, e.height, e.tx_index, e.event_index, e.token, e.from_address, e.to_address, e.amount
    from jsonb_to_recordset($3::jsonb) as e (height bigint, tx_index bigint, event_index bigint, token text,
                                             from_address text, to_address text, amount numeric)
)
insert into events (chain_id, height, tx_index, event_index, emitter, name, keys, data, attributes)
select $1, e.height, e.tx_index, e.event_index, e.emitter, e.name, coalesce(e.keys, '{}'), coalesce(e.data, '{}'),
    coalesce(e.attributes, '{}')
from jsonb_to_recordset($4::jsonb) as e (height bigint, tx_index bigint, event_index bigint, emitter text, name text,
                                         keys text[], data text[], attributes jsonb)
