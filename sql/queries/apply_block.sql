-- One block, one statement, one transaction: fence, balances, journal, checkpoint.
--
-- $1 chain, $2 projection, $3 the checkpoint's seq, $4 to $6 blocks to hold (the one before, if there
-- is one, and this one: heights, hashes, revisions; a null revision: any), $7 the chain must be complete to here
-- (null: not asked), $8 height, $9 hash, $10 revision, $11 through_height, $12 start_height, $13 note it in applied_blocks, $14 to $16 deltas by (token, address),
-- $17 write history, $18 refuse negative balances, $19 to $22 refused events (tx_index, event_index, raw, reason).
--
-- Each part hangs on the fence: no row comes back, and nothing is written, when a block is being changed by someone
-- else (skip locked), is another one by now, or the checkpoint has moved. The chain row is locked before the blocks,
-- as writers do, so that nobody waits in a circle. What was written is joined with what was sent by its place in the
-- arrays, which each row keeps: a number, and not two long texts. The bounds of the heights are for the plan: with `any`
-- alone, one made while the table was small reads all blocks of the chain by the index on their hashes (`+ 0` keeps
-- `any` from it).
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
    set seq = k.seq + 1, height = $8, hash = $9, through_height = $11, start_height = $12,
        journal_from = case when $13 then k.journal_from else $8::bigint + 1 end,
        history_from = case when $17 then k.history_from else greatest(k.history_from, $11) end, updated_at = now()
    where k.chain_id = $1 and k.projection = $2 and k.seq = $3
      and k.redo_from is null and k.halted_reason is null and (not k.paused or k.pause_at >= $11)
      and (select holds from fence)
    returning k.seq
),
changed as (
    insert into balances as b (chain_id, token, address, amount, height, place)
    select $1, unnest($14::text[]), unnest($15::text[]), unnest($16::numeric[]), $8,
        generate_series(1, cardinality($14::text[]))
    from moved
    on conflict (chain_id, token, address) do update
    set amount = b.amount + excluded.amount, height = excluded.height, prev_height = b.height, place = excluded.place
    returning balance_id, place, amount, prev_height
),
journalled as (
    insert into balance_history (balance_id, chain_id, height, delta, balance_after, prev_height)
    select c.balance_id, $1, $8, d.delta, c.amount, c.prev_height
    from (select unnest($16::numeric[]) as delta, generate_series(1, cardinality($16::numeric[])) as place) d
    join changed c on c.place = d.place
    where $17
),
noted as (
    insert into applied_blocks (chain_id, projection, height, hash, revision, before_height, ids)
    select $1, $2, $8, $9, $10, case when cardinality($4::bigint[]) > 1 then ($4::bigint[])[1] end,
        case when $17 then array(select c.balance_id from changed c) end
    from moved where $13
),
refused as (
    insert into rejected_events (chain_id, height, tx_index, event_index, projection, block_hash, raw, reason)
    select $1, $8, r.tx_index, r.event_index, $2, $9, r.raw, r.reason
    from moved, unnest($19::bigint[], $20::bigint[], $21::jsonb[], $22::text[]) as r (tx_index, event_index, raw, reason)
    on conflict (chain_id, height, tx_index, event_index, projection) do update
    set block_hash = excluded.block_hash, raw = excluded.raw, reason = excluded.reason, at = now()
)
select m.seq,
    (select count(*) from changed c where c.amount < 0) as negative,
    case when $18 then (select bool_or(refuse_negative(($14::text[])[c.place], ($15::text[])[c.place], c.amount, $8))
                        from changed c where c.amount < 0) end as refused
from moved m
