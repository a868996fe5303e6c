-- Several blocks in one statement and one transaction; each keeps its own rows in the journal.
--
-- Parameters as in apply_block.sql, but: $8 to $10 are arrays of the blocks to note in applied_blocks, $13 to $16 the
-- net changes over all blocks by (token, address) with the last height of each, $17 to $21 the changes per block: the
-- place of its key among the net changes (from 1), height, delta, the sum of the same key's later changes (null: 0),
-- the height of its change before (null: the one in balances); $22 write history, $23 refuse negative balances, $24 to
-- $28 refused events with their height, $29 and $30 height and hash of the last block, $31 the height after the last
-- block that is not noted (null: all are).
with complete as materialized (
    select c.chain_id
    from chains c
    where c.chain_id = $1 and $7::bigint is not null and c.complete_to >= $7
    for share
),
held as materialized (
    select b.height, b.hash, b.revision
    from blocks b
    where b.chain_id = $1 and b.height >= ($4::bigint[])[1] and b.height <= ($4::bigint[])[cardinality($4::bigint[])]
      and b.height + 0 = any ($4::bigint[])
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
    set seq = k.seq + 1, height = $29, hash = $30, through_height = $11, start_height = $12,
        journal_from = coalesce($31::bigint, k.journal_from),
        history_from = case when $22 then k.history_from else greatest(k.history_from, $11) end, updated_at = now()
    where k.chain_id = $1 and k.projection = $2 and k.seq = $3
      and k.redo_from is null and k.halted_reason is null and (not k.paused or k.pause_at >= $11)
      and (select holds from fence)
    returning k.seq
),
changed as (
    insert into balances as b (chain_id, token, address, amount, height, place)
    select $1, unnest($13::text[]), unnest($14::text[]), unnest($15::numeric[]), unnest($16::bigint[]),
        generate_series(1, cardinality($13::text[]))
    from moved
    on conflict (chain_id, token, address) do update
    set amount = b.amount + excluded.amount, height = excluded.height, prev_height = b.height, place = excluded.place
    returning balance_id, place, amount, prev_height
),
journalled as (
    insert into balance_history (balance_id, chain_id, height, delta, balance_after, prev_height)
    select c.balance_id, $1, d.height, d.delta, case when d.later is null then c.amount else c.amount - d.later end,
        coalesce(d.prev_height, c.prev_height)
    from (
        select unnest($17::integer[]) as place, unnest($18::bigint[]) as height, unnest($19::numeric[]) as delta,
            unnest($20::numeric[]) as later, unnest($21::bigint[]) as prev_height
    ) d
    join changed c on c.place = d.place
    where $22
),
named as (
    select d.height, array_agg(c.balance_id) as ids
    from (select unnest($17::integer[]) as place, unnest($18::bigint[]) as height) d
    join changed c on c.place = d.place
    where cardinality($8::bigint[]) > 0
    group by d.height
),
noted as (
    insert into applied_blocks (chain_id, projection, height, hash, revision, before_height, ids)
    select $1, $2, n.height, n.hash, n.revision,
        ($4::bigint[])[cardinality($4::bigint[]) - cardinality($8::bigint[]) + n.place::int - 1],
        case when $22 then coalesce(i.ids, '{}') end
    from moved
    cross join unnest($8::bigint[], $9::text[], $10::bigint[]) with ordinality n (height, hash, revision, place)
    left join named i on i.height = n.height
),
refused as (
    insert into rejected_events (chain_id, height, tx_index, event_index, projection, block_hash, raw, reason)
    select $1, r.height, r.tx_index, r.event_index, $2,
        coalesce((select h.hash from held h where h.height = r.height), ''), r.raw, r.reason
    from moved, unnest($24::bigint[], $25::bigint[], $26::bigint[], $27::jsonb[], $28::text[])
        as r (height, tx_index, event_index, raw, reason)
    on conflict (chain_id, height, tx_index, event_index, projection) do update
    set block_hash = excluded.block_hash, raw = excluded.raw, reason = excluded.reason, at = now()
)
select m.seq,
    (select count(*) from changed c where c.amount < 0) as negative,
    case when $23 then (select bool_or(refuse_negative(($13::text[])[c.place], ($14::text[])[c.place], c.amount, $29))
                        from changed c where c.amount < 0) end as refused
from moved m
