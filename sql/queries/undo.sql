-- Takes balances back to what they were after the block at $4 (-2: before the opening balances), set-based.
--
-- $1 chain, $2 projection, $3 the checkpoint's seq, $5 to $7 the checkpoint's new height, hash and through_height
-- (null: nothing is applied), $8 redo_from from now on. Each balance must be what the journal says it was left at;
-- `keys` and `restored` differ where one is not, and the caller halts rather than spread the difference.
with moved as (
    update checkpoints k
    set seq = k.seq + 1, height = $5, hash = $6, through_height = $7,
        start_height = case when $5::bigint is null then null else k.start_height end,
        journal_from = case when $5::bigint is not null then
            case when k.journal_from > $4::bigint + 1 then $4::bigint + 1 else k.journal_from end end,
        redo_from = $8, deep_change = k.deep_change and $8::bigint is not null, updated_at = now()
    where k.chain_id = $1 and k.projection = $2 and k.seq = $3
    returning k.seq
),
gone as (
    delete from balance_history c
    using moved
    where c.chain_id = $1 and c.height > $4
    returning c.balance_id, c.height, c.delta, c.balance_after, c.prev_height
),
keys as (
    select balance_id, sum(delta) as delta,
        (array_agg(balance_after order by height desc))[1] as left_at,
        (array_agg(prev_height order by height))[1] as prev_height
    from gone
    group by balance_id
),
dropped as (
    delete from balances b
    using keys k
    where b.chain_id = $1 and b.balance_id = k.balance_id
      and k.prev_height is null and b.amount = k.left_at and k.left_at = k.delta
    returning 1
),
restored as (
    update balances b
    set amount = b.amount - k.delta, height = k.prev_height, prev_height = null
    from keys k
    where b.chain_id = $1 and b.balance_id = k.balance_id
      and k.prev_height is not null and b.amount = k.left_at
    returning 1
),
unnoted as (
    delete from applied_blocks a
    using moved
    where a.chain_id = $1 and a.projection = $2 and a.height > $4
    returning 1
),
unrefused as (
    delete from rejected_events r
    using moved
    where r.chain_id = $1 and r.projection = $2 and r.height > $4
)
select m.seq,
    (select count(*) from keys) as keys,
    (select count(*) from dropped) + (select count(*) from restored) as restored,
    (select count(*) from gone) as changes,
    (select count(*) from unnoted) as blocks
from moved m
