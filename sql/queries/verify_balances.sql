-- Balances that are not the sum of their changes: missing, too many, another amount or another height.
with recomputed as (
    select token, address, sum(delta) as amount, max(height) as height
    from verify_changes
    group by token, address
),
ours as (
    select token, address, amount, height from balances where chain_id = $1
)
select 'balance' as kind, format('%s in %s', address, token) as key,
    case when o.amount is null then 'no row' else format('%s, changed at %s', trunc(o.amount), o.height) end as ours,
    case when r.amount is null then 'no row' else format('%s, changed at %s', trunc(r.amount), r.height) end as recomputed,
    count(*) over () as differences
from ours o
full join recomputed r using (token, address)
where o.amount is distinct from r.amount or o.height is distinct from r.height
order by token, address
limit $2
