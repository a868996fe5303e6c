-- Totals that are not the sums of the balances beside them. A token without a row has a total of 0.
select 'total' as kind, token as key, trunc(coalesce(t.total, 0))::text as ours, trunc(coalesce(b.total, 0))::text as recomputed,
    count(*) over () as differences
from (select token, total from token_totals where chain_id = $1) t
full join (select token, sum(amount) as total from balances where chain_id = $1 group by token) b using (token)
where coalesce(t.total, 0) <> coalesce(b.total, 0)
order by token
limit $2
