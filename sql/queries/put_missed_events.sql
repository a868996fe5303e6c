-- put_missed_events
-- Events of stored blocks ($2: an array of rows) that are not there yet. A block that announced how many it has announces
-- them too.
with missing as (
    insert into events (chain_id, height, tx_index, event_index, emitter, name, keys, data, attributes)
    select $1, m.height, m.tx_index, m.event_index, m.emitter, m.name, m.keys, m.data, m.attributes
    from jsonb_to_recordset($2::jsonb) as m (
        height bigint, tx_index bigint, event_index bigint, emitter text, name text, keys text[], data text[],
        attributes jsonb)
    on conflict (chain_id, height, tx_index, event_index) do nothing
    returning height
), counted as (
    select height, count(*) as events from missing group by height
), announced as (
    update blocks b
    set event_count = b.event_count + c.events
    from counted c
    where b.chain_id = $1 and b.height = c.height and b.event_count is not null
)
select coalesce(sum(events), 0)::bigint from counted
