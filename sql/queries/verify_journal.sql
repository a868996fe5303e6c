-- The journal, row by row. What was pruned up to $2 (null: nothing) need not be there; what is there must be right.
with ours as (
    select coalesce(b.token, format('balance %s that is not there', h.balance_id)) as token, coalesce(b.address, '?') as address,
        h.height, h.delta, h.balance_after, h.prev_height
    from balance_history h
    left join balances b on b.balance_id = h.balance_id and b.chain_id = h.chain_id
    where h.chain_id = $1
)
select 'change' as kind, format('%s in %s at %s', address, token, height) as key,
    case when o.delta is null then 'no row'
         else format('%s to %s after %s', trunc(o.delta), trunc(o.balance_after), coalesce(o.prev_height::text, 'nothing'))
    end as ours,
    case when r.delta is null then 'no row'
         else format('%s to %s after %s', trunc(r.delta), trunc(r.balance_after), coalesce(r.prev_height::text, 'nothing'))
    end as recomputed,
    count(*) over () as differences
from ours o
full join verify_changes r using (token, address, height)
where case when o.delta is null then $2::bigint is null or height > $2
           else (o.delta, o.balance_after, o.prev_height) is distinct from (r.delta, r.balance_after, r.prev_height) end
order by token, address, height
limit $3
