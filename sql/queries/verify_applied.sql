-- The journal of applied blocks against the blocks that count up to $2: above the final height $3 every one has its
-- row, and every row names its block's hash and revision.
with ours as (
    select height, hash, revision from applied_blocks where chain_id = $1 and projection = 'token_balances'
),
theirs as (
    select height, hash, revision from verify_counted where height <= $2
)
select 'applied block' as kind, height::text as key,
    case when o.hash is null then 'no row' else format('%s, revision %s', o.hash, o.revision) end as ours,
    case when t.hash is null then 'no row' else format('%s, revision %s', t.hash, t.revision) end as recomputed,
    count(*) over () as differences
from ours o
full join theirs t using (height)
where case when o.hash is null then $3::bigint is null or height > $3
           else (o.hash, o.revision) is distinct from (t.hash, t.revision) end
order by height
limit $4
