-- Nothing of one chain counts as applied from here on; what stands in `balances` stays until replace_built.sql compares it.
with moved as (
    update checkpoints k
    set seq = k.seq + 1, height = null, hash = null, through_height = null, start_height = null, history_from = null,
        journal_from = null, redo_from = null, deep_change = false, updated_at = now()
    where k.chain_id = $1 and k.projection = $2 and k.seq = $3
    returning k.seq, k.tells, k.number
),
unnoted as (
    delete from applied_blocks a using moved where a.chain_id = $1 and a.projection = $2 returning a.height, a.seq
),
told as (
    insert into outbox (chain_id, projection, seq, mark, undone, said)
    select $1, $2, m.seq, notice_mark((select c.name from chains c where c.chain_id = $1), m.number, null),
        told_blocks($1, $2, (select array_agg(array[u.seq, u.height]) from unnoted u)),
        '{"cause": "rebuild", "balances": []}'
    from moved m
    where m.tells > 0
),
unrefused as (
    delete from rejected_events r using moved where r.chain_id = $1 and r.projection = $2
)
select m.seq, (select count(*) from unnoted) as blocks
from moved m
