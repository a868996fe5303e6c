-- Rows of chains that are not there.
select t.name as kind, format('chain_id %s', t.chain_id) as key, format('%s rows', t.rows) as ours, 'no such chain' as recomputed,
    count(*) over () as differences
from (
    select 'balances' as name, chain_id, count(*) as rows from balances group by chain_id
    union all
    select 'token_totals', chain_id, count(*) from token_totals group by chain_id
    union all
    select 'balance_history', chain_id, count(*) from balance_history group by chain_id
    union all
    select 'applied_blocks', chain_id, count(*) from applied_blocks group by chain_id
) t
where not exists (select from chains c where c.chain_id = t.chain_id)
order by 1, 2
limit $1
