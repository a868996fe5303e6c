-- The journal of applied blocks against the blocks that count up to $2: above the final height $3 every one has its
-- row, and every row names its block's hash and revision, and the balances that changed in it.
with ours as (
    select height, hash, revision, ids from applied_blocks where chain_id = $1 and projection = 'token_balances'
),
theirs as (
    select height, hash, revision from verify_counted where height <= $2
),
named as (
    select o.height, coalesce(b.token, format('balance %s that is not there', i.balance_id)) as token,
        coalesce(b.address, '?') as address
    from ours o
    cross join unnest(o.ids) i (balance_id)
    left join balances b on b.balance_id = i.balance_id and b.chain_id = $1
),
changed as (
    select r.height, r.token, r.address from verify_changes r join ours o on o.height = r.height where o.ids is not null
),
found as (
    select 'applied block' as kind, height::text as key,
        case when o.hash is null then 'no row' else format('%s, revision %s', o.hash, o.revision) end as ours,
        case when t.hash is null then 'no row' else format('%s, revision %s', t.hash, t.revision) end as recomputed,
        height
    from ours o
    full join theirs t using (height)
    where case when o.hash is null then $3::bigint is null or height > $3
               else (o.hash, o.revision) is distinct from (t.hash, t.revision) end
    union all
    select 'balance in an applied block', format('%s in %s at %s', address, token, height),
        case when n.token is null then 'not named' else 'named' end,
        case when c.token is null then 'not changed' else 'changed' end, height
    from named n
    full join changed c using (height, token, address)
    where n.token is null or c.token is null
)
select kind, key, ours, recomputed, count(*) over () as differences
from found
order by height, kind, key
limit $4
