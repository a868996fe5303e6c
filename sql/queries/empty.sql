-- Empties the projection of one chain: what undo does when the journal does not reach back far enough.
with moved as (
    update checkpoints k
    set seq = k.seq + 1, height = null, hash = null, through_height = null, start_height = null, history_from = null,
        journal_from = null, redo_from = null, deep_change = false, updated_at = now()
    where k.chain_id = $1 and k.projection = $2 and k.seq = $3
    returning k.seq
),
gone as (
    delete from balance_history c using moved where c.chain_id = $1 returning 1
),
dropped as (
    delete from balances b using moved where b.chain_id = $1 returning 1
),
unnoted as (
    delete from applied_blocks a using moved where a.chain_id = $1 and a.projection = $2 returning 1
),
unrefused as (
    delete from rejected_events r using moved where r.chain_id = $1 and r.projection = $2
)
select m.seq,
    (select count(*) from dropped) as keys, (select count(*) from dropped) as restored,
    (select count(*) from gone) as changes, (select count(*) from unnoted) as blocks
from moved m
