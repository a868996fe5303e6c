-- Several blocks in one statement and one transaction; each keeps its own rows in the journal.
--
-- Parameters as in apply_block.sql, but: $8 to $10 are arrays of the blocks to note in applied_blocks, $13 to $16 the
-- net changes over all blocks by (token, address) with the last height of each, $17 to $22 the changes per block:
-- token, address, height, delta, the sum of the same key's later changes, the height of its change before (null: the
-- one in balances); $23 write history, $24 refuse negative balances, $25 to $29 refused events with their height,
-- $30 and $31 height and hash of the last block, $32 the height after the last block that is not noted (null: all are).
with complete as materialized (
    select c.chain_id
    from chains c
    where c.chain_id = $1 and $7::bigint is not null and c.complete_to >= $7
    for share
),
held as materialized (
    select b.height, b.hash, b.revision
    from blocks b
    where b.chain_id = $1 and b.height = any ($4::bigint[])
      and ($7::bigint is null or exists (select from complete))
    order by b.height
    for share skip locked
),
fence as materialized (
    select count(*) = cardinality($4::bigint[]) as holds
    from held h
    join unnest($4::bigint[], $5::text[], $6::bigint[]) as w (height, hash, revision)
        on w.height = h.height and w.hash = h.hash and coalesce(w.revision, h.revision) = h.revision
),
moved as (
    update checkpoints k
    set seq = k.seq + 1, height = $30, hash = $31, through_height = $11, start_height = $12,
        journal_from = coalesce($32::bigint, k.journal_from),
        history_from = case when $23 then k.history_from else greatest(k.history_from, $11) end, updated_at = now()
    where k.chain_id = $1 and k.projection = $2 and k.seq = $3
      and k.redo_from is null and k.halted_reason is null and (not k.paused or k.pause_at >= $11)
      and (select holds from fence)
    returning k.seq
),
changed as (
    insert into balances as b (chain_id, token, address, amount, height)
    select $1, d.token, d.address, d.delta, d.height
    from moved, unnest($13::text[], $14::text[], $15::numeric[], $16::bigint[]) as d (token, address, delta, height)
    on conflict (chain_id, token, address) do update
    set amount = b.amount + excluded.amount, height = excluded.height, prev_height = b.height
    returning token, address, amount, prev_height
),
journalled as (
    insert into balance_changes (chain_id, token, address, height, delta, balance_after, prev_height)
    select $1, c.token, c.address, d.height, d.delta, c.amount - d.later, coalesce(d.prev_height, c.prev_height)
    from unnest($17::text[], $18::text[], $19::bigint[], $20::numeric[], $21::numeric[], $22::bigint[])
        as d (token, address, height, delta, later, prev_height)
    join changed c on c.token = d.token and c.address = d.address
    where $23
),
noted as (
    insert into applied_blocks (chain_id, projection, height, hash, revision)
    select $1, $2, n.height, n.hash, n.revision
    from moved, unnest($8::bigint[], $9::text[], $10::bigint[]) as n (height, hash, revision)
),
refused as (
    insert into rejected_events (chain_id, height, tx_index, event_index, projection, block_hash, raw, reason)
    select $1, r.height, r.tx_index, r.event_index, $2,
        coalesce((select h.hash from held h where h.height = r.height), ''), r.raw, r.reason
    from moved, unnest($25::bigint[], $26::bigint[], $27::bigint[], $28::jsonb[], $29::text[])
        as r (height, tx_index, event_index, raw, reason)
    on conflict (chain_id, height, tx_index, event_index, projection) do update
    set block_hash = excluded.block_hash, raw = excluded.raw, reason = excluded.reason, at = now()
)
select m.seq,
    (select count(*) from changed c where c.amount < 0) as negative,
    case when $24 then (select bool_or(refuse_negative(c.token, c.address, c.amount, $30))
                        from changed c where c.amount < 0) end as refused
from moved m
