-- history = "window": the last change at or below the horizon stays, since it is the balance there.
with pruned as (
    delete from balance_changes c
    using (
        select token, address, height from balance_changes
        where chain_id = $1 and height > $3 and height <= $4 and prev_height is not null
    ) later
    where c.chain_id = $1 and c.token = later.token and c.address = later.address and c.height < later.height
    returning 1
),
noted as (
    update checkpoints k set history_from = $4
    where k.chain_id = $1 and k.projection = $2 and coalesce(k.history_from, -1) < $4
)
select count(*) from pruned
