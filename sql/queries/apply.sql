-- A run of blocks on `token_balances`, one statement, one transaction: fence, checkpoint, balances, history, journal.
--
-- What it is sent on: $1 chain, $2 projection, $3 the checkpoint's seq, $4 and $5 height and hash of the block that it stands
-- on (null: nothing is applied). What must be there: $6 to $8 heights (ascending), hashes and revisions of the block before
-- and of the run (a null revision, of the first alone: any), $9 the chain is complete to here (null: not asked).
-- The checkpoint afterwards: $10 and $11 the last block, $12 through_height, $13 start_height, $14 journal_from (null: as it
-- is). $15 to $18 blocks to note in applied_blocks (heights, hashes, revisions, heights of the blocks before them).
-- Balances that stand: $19 to $22 balance_id, amount before, amount after, height of the last change; new ones: $23 to $27
-- balance_id, token, address, amount, height. $28 to $32 their changes (balance_id, height, delta, amount after, height of the
-- change before), $33 whether these are kept. $34 to $38 events left out (height, tx_index, event_index, raw, reason). $39 and $40
-- tokens whose totals change, and by how much. $41 what checkpoints.tells must be (null: not asked, and nothing is told), $42 and
-- $43 `names` and `said` of the row of outbox.
--
-- Each part hangs on the fence: no row comes back, and nothing is written, when a block is being changed by someone else
-- (skip locked), is another one by now, or the checkpoint has moved. The checkpoint is compared by seq and by its block: on
-- seq alone, a statement sent ahead on a predicted seq would land on whatever a competitor applied under that number; on the
-- block alone, an undo in between would go unnoticed. The chain row is locked before the blocks, as writers do, so that there is
-- no deadlock. A balance that is not what the processor read fails the statement.
--
-- The long arrays are taken apart in select lists: in from, all their rows would be kept before the first of them is written.
--
-- Where heights were taken as empty, no block may be stored between those of the run: complete_to says that what is missing is
-- empty, not that it still is. A block that came after this statement began is not among those that it sees, though
-- complete_to may have risen over it again: `writes`, compared as it was then with what it is under the lock, shows it.
with complete as materialized (
    select c.chain_id
    from chains c
    where c.chain_id = $1 and $9::bigint is not null and c.complete_to >= $9
      and c.writes = (select s.writes from chains s where s.chain_id = $1)
    for share
),
held as materialized (
    select b.height, b.hash, b.revision, b.parent_hash, b.time
    from blocks b
    where b.chain_id = $1 and b.height >= ($6::bigint[])[1] and b.height <= ($6::bigint[])[cardinality($6::bigint[])]
      and ($9::bigint is null or exists (select from complete))
    order by b.height
    for share skip locked
),
fence as materialized (
    select array_agg(h.height order by h.height) = $6::bigint[]
        and array_agg(h.hash order by h.height) = $7::text[]
        and array_agg(case when h.height > ($6::bigint[])[1] or ($8::bigint[])[1] is not null then h.revision end
                      order by h.height) = $8::bigint[] as holds
    from held h
),
moved as (
    update checkpoints k
    set seq = k.seq + 1, height = $10, hash = $11, through_height = $12, start_height = $13,
        journal_from = coalesce($14::bigint, k.journal_from),
        history_from = case when $33 then k.history_from else greatest(k.history_from, $12) end, updated_at = now()
    where k.chain_id = $1 and k.projection = $2 and k.seq = $3
      and k.height is not distinct from $4::bigint and k.hash is not distinct from $5::text
      and k.redo_from is null and k.halted_reason is null and (not k.paused or k.pause_at >= $12)
      and ($41::integer is null or k.tells = $41)
      and (select holds from fence)
    returning k.seq, k.number
),
changed as (
    update balances b
    set amount = c.after, height = c.height
    from (select unnest($19::bigint[]), unnest($20::numeric[]), unnest($21::numeric[]), unnest($22::bigint[]))
        c (balance_id, before, after, height)
    where (select m.seq from moved m) is not null and b.balance_id = c.balance_id and b.amount = c.before
    returning 1
),
added as (
    insert into balances (chain_id, balance_id, token, address, amount, height)
    overriding system value
    select $1, unnest($23::bigint[]), unnest($24::text[]), unnest($25::text[]), unnest($26::numeric[]), unnest($27::bigint[])
    from moved
),
summed as (
    insert into token_totals (chain_id, token, total)
    select $1, unnest($39::text[]), unnest($40::numeric[])
    from moved
    on conflict (chain_id, token) do update set total = token_totals.total + excluded.total
),
kept as (
    insert into balance_history (balance_id, chain_id, height, delta, balance_after, prev_height)
    select unnest($28::bigint[]), $1, unnest($29::bigint[]), unnest($30::numeric[]), unnest($31::numeric[]), unnest($32::bigint[])
    from moved
    where $33
),
named as (
    select h.height, array_agg(h.balance_id) as ids
    from unnest($28::bigint[], $29::bigint[]) h (balance_id, height)
    where cardinality($15::bigint[]) > 0
    group by h.height
),
noted as (
    insert into applied_blocks (chain_id, projection, height, hash, revision, before_height, ids, seq)
    select $1, $2, n.height, n.hash, n.revision, n.before_height, case when $33 then coalesce(i.ids, '{}') end, moved.seq
    from moved
    cross join unnest($15::bigint[], $16::text[], $17::bigint[], $18::bigint[]) n (height, hash, revision, before_height)
    left join named i on i.height = n.height
),
told as (
    insert into outbox (chain_id, projection, seq, mark, height, hash, heights, hashes, parents, times, names, said)
    select $1, $2, m.seq, notice_mark((select c.name from chains c where c.chain_id = $1), m.number, $11), $10, $11, b.heights, b.hashes, b.parents, b.times, $42, $43
    from moved m
    cross join lateral (
        select array_agg(h.height order by h.height) as heights, array_agg(h.hash order by h.height) as hashes,
            array_agg(h.parent_hash order by h.height) as parents, array_agg(h.time order by h.height) as times
        from held h
        where $4 is null or h.height > $4
    ) b
    where $41 > 0
),
refused as (
    insert into rejected_events (chain_id, height, tx_index, event_index, projection, block_hash, raw, reason)
    select $1, r.height, r.tx_index, r.event_index, $2,
        coalesce((select h.hash from held h where h.height = r.height), ''), r.raw, r.reason
    from moved, unnest($34::bigint[], $35::bigint[], $36::bigint[], $37::jsonb[], $38::text[])
        as r (height, tx_index, event_index, raw, reason)
    on conflict (chain_id, height, tx_index, event_index, projection) do update
    set block_hash = excluded.block_hash, raw = excluded.raw, reason = excluded.reason, at = now()
)
select m.seq,
    case when (select count(*) from changed) <> cardinality($19::bigint[]) then refuse_changed_balances($2, $10) end as refused
from moved m
