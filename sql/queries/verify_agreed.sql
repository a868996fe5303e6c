-- The lowest height at which a projection ($2) on a chain ($1), applied up to $3 ($4), is not what the chain says now, or
-- from which it is to be applied again ($5); and the last block below that to which undo reaches.
with ours as (
    select height, hash, revision from applied_blocks where chain_id = $1 and projection = $2
), theirs as (
    select height, hash, revision from verify_counted where height <= $3
), differing as (
    select min(height) as height
    from (
        select height
        from ours o full join theirs t using (height)
        where (o.hash, o.revision) is distinct from (t.hash, t.revision)
          -- What is final has no row of ours.
          and (o.hash is not null or height >= (select min(height) from ours))
        union all
        select $5::bigint
        union all
        select $3::bigint where not exists (select from theirs where height = $3::bigint and hash = $4)
    ) h
)
select d.height as differs_at,
    case when d.height > (select min(height) from ours) then
        (select max(height) from ours where height < d.height)
    end as agreed
from differing d
