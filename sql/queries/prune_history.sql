-- history = "window": the last change at or below the horizon stays, since it is the balance there. Only for a state
-- that was compared as it stands ($5: its seq): another processor may have taken it below the horizon meanwhile.
with fence as materialized (
    update checkpoints k
    set history_from = greatest(k.history_from, $4)
    where k.chain_id = $1 and k.projection = $2 and k.seq = $5
    returning 1
),
pruned as (
    delete from balance_history c
    using (
        select balance_id, height from balance_history
        where chain_id = $1 and height > $3 and height <= $4 and prev_height is not null
    ) later
    where c.balance_id = later.balance_id and c.height < later.height
      and exists (select from fence)
    returning 1
)
select count(*) from pruned
