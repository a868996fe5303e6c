-- put_blocks
-- A few blocks with all they hold ($13: the events, as a JSON array of rows), in one round trip. What the trigger on blocks
-- rings for is there by then: it runs after the whole of the statement.
with t as (
    insert into transactions (chain_id, height, tx_index, hash, success)
    select $1, * from unnest($2::bigint[], $3::bigint[], $4::text[], $5::boolean[])
), m as (
    insert into token_events (chain_id, height, tx_index, event_index, token, from_address, to_address, amount)
    select $1, * from unnest($6::bigint[], $7::bigint[], $8::bigint[], $9::text[], $10::text[], $11::text[], $12::numeric[])
), e as (
    insert into events (chain_id, height, tx_index, event_index, emitter, name, keys, data, attributes)
    select $1, r.height, r.tx_index, r.event_index, r.emitter, r.name, r.keys, r.data, r.attributes
    from jsonb_to_recordset($13::text::jsonb) as r (
        height bigint, tx_index bigint, event_index bigint, emitter text, name text, keys text[], data text[],
        attributes jsonb)
)
insert into blocks (chain_id, height, hash, parent_hash, time)
select $1, * from unnest($14::bigint[], $15::text[], $16::text[], $17::timestamptz[])
