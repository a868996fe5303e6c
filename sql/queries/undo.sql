-- Takes balances back to what they were after the block at $4 (-2: before the opening balances), set-based.
--
-- $1 chain, $2 projection, $3 the checkpoint's seq, $5 to $7 the checkpoint's new height, hash and through_height
-- (null: nothing is applied), $8 redo_from from now on.
--
-- The journal names the balances. Where it does not reach down to the block at $5, or a row of it is missing, or nothing
-- stays, every balance that changed above $4 is looked for. Each must be what its history says it was left at, and the
-- history must be whole; `keys` and `restored` differ where one is not, and the caller halts rather than spread the
-- difference.
with moved as (
    update checkpoints k
    set seq = k.seq + 1, height = $5, hash = $6, through_height = $7,
        start_height = case when $5::bigint is null then null else k.start_height end,
        journal_from = case when $5::bigint is not null then
            case when k.journal_from > $4::bigint + 1 then $4::bigint + 1 else k.journal_from end end,
        redo_from = $8, deep_change = k.deep_change and $8::bigint is not null, updated_at = now()
    where k.chain_id = $1 and k.projection = $2 and k.seq = $3
    returning k.seq, k.tells, k.number
),
journal as materialized (
    select a.height, a.ids, a.ids is not null and a.before_height = lag(a.height, 1, $5::bigint) over (order by a.height) as follows
    from applied_blocks a
    where a.chain_id = $1 and a.projection = $2 and a.height > $4
),
whole as materialized (
    select coalesce(bool_and(coalesce(j.follows, false)) and max(j.height) =
        (select k.height from checkpoints k where k.chain_id = $1 and k.projection = $2), false) as is_whole
    from journal j
),
touched as materialized (
    (select distinct i.balance_id
     from journal j
     cross join unnest(j.ids) i (balance_id)
     where (select is_whole from whole)
     order by i.balance_id)
    union all
    select b.balance_id
    from balances b
    where b.chain_id = $1 and b.height > $4 and not (select is_whole from whole)
),
gone as (
    delete from balance_history c
    using moved, touched t
    where c.balance_id = t.balance_id and c.height > $4
    returning c.balance_id, c.height, c.delta, c.balance_after, c.prev_height
),
steps as (
    select balance_id, height, balance_after, balance_after - delta as amount_before, prev_height,
        lag(height) over w as below, lag(balance_after) over w as below_at, lead(height) over w is null as is_last
    from gone
    window w as (partition by balance_id order by height)
),
known as (
    select balance_id, max(height) as left_height, max(balance_after) filter (where is_last) as left_at,
        max(amount_before) filter (where below is null) as amount_before,
        max(prev_height) filter (where below is null) as prev_height
    from steps
    group by balance_id
    having bool_and(case when below is not null then coalesce(prev_height = below, false) and amount_before = below_at
                         when prev_height is not null then prev_height <= $4
                         else amount_before = 0 end)
),
dropped as (
    delete from balances b
    using known k
    where b.chain_id = $1 and b.balance_id = k.balance_id
      and k.prev_height is null and b.amount = k.left_at and b.height = k.left_height
    returning b.token, b.address, null::numeric as amount, - k.left_at as change
),
restored as (
    update balances b
    set amount = k.amount_before, height = k.prev_height, prev_height = null
    from known k
    where b.chain_id = $1 and b.balance_id = k.balance_id
      and k.prev_height is not null and b.amount = k.left_at and b.height = k.left_height
    returning b.token, b.address, b.amount, k.amount_before - k.left_at as change
),
-- Blocks that were applied together left no row where their changes of a token came to nothing; one of them alone may not.
summed as (
    insert into token_totals (chain_id, token, total)
    select $1, c.token, c.change
    from (select token, sum(change) as change from (table dropped union all table restored) e group by token) c
    where c.change <> 0
    on conflict (chain_id, token) do update set total = token_totals.total + excluded.total
),
unnoted as (
    delete from applied_blocks a
    using moved
    where a.chain_id = $1 and a.projection = $2 and a.height > $4
    returning a.height, a.seq
),
-- Taken back is what was said of the blocks, whatever they hold by now; and each balance is told as it is again.
told as (
    insert into outbox (chain_id, projection, seq, mark, height, hash, undone, said)
    select $1, $2, m.seq, notice_mark((select c.name from chains c where c.chain_id = $1), m.number, $6), $5, $6,
        told_blocks($1, $2, (select array_agg(array[u.seq, u.height]) from unnoted u)),
        jsonb_build_object('cause', 'reorg', 'balances',
            (select coalesce(jsonb_agg(jsonb_build_array(b.token, b.address, b.amount::text) order by b.token, b.address), '[]')
             from (table dropped union all table restored) b))::text
    from moved m
    where m.tells > 0
),
unrefused as (
    delete from rejected_events r
    using moved
    where r.chain_id = $1 and r.projection = $2 and r.height > $4
)
select m.seq,
    (select count(*) from touched) as keys,
    (select count(*) from dropped) + (select count(*) from restored) as restored,
    (select count(*) from gone) as changes,
    (select count(*) from unnoted) as blocks
from moved m
