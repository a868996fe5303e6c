-- history = "window": the undo horizon $3 as in prune_applied.sql, and history with it. The last change at or below the
-- horizon stays, since it is the balance there. In one step: history that is gone while the journal still names its block
-- would be missed by the next undo. Only for a state that was compared as it stands ($4: its seq).
with fence as materialized (
    update checkpoints k
    set journal_from = greatest(k.journal_from, $3::bigint + 1),
        -- Not above the last block: empty heights passed after it would make the present itself look pruned.
        history_from = greatest(k.history_from, least($3, k.height))
    where k.chain_id = $1 and k.projection = $2 and k.seq = $4
    returning 1
),
unnoted as (
    delete from applied_blocks a
    where a.chain_id = $1 and a.projection = $2 and a.height <= $3 and exists (select from fence)
    returning a.height, a.ids
),
later as materialized (
    select i.balance_id, max(a.height) as height
    from unnoted a
    cross join unnest(a.ids) i (balance_id)
    group by i.balance_id
    union all
    -- Nothing was pruned yet: all history was kept until now, and is looked at once.
    select h.balance_id, max(h.height)
    from balance_history h
    where h.chain_id = $1 and h.height <= $3 and exists (select from fence)
      and (select k.history_from is null from checkpoints k where k.chain_id = $1 and k.projection = $2)
    group by h.balance_id
),
-- One look-up for each balance, whatever the connection's settings say about joins.
pruned as (
    delete from balance_history c
    where c.ctid = any (array(
        select o.ctid
        from later l
        cross join lateral (
            select h.ctid from balance_history h where h.balance_id = l.balance_id and h.height < l.height offset 0
        ) o))
    returning 1
)
select count(*) from pruned
