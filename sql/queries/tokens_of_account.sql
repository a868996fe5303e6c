-- Tokens in which the account ever had an event: skips from token to token in the primary key of balances.
with recursive t as (
    (select b.token from balances b where b.chain_id = $1 order by b.token limit 1)
    union all
    select n.token
    from t
    cross join lateral (
        select b.token from balances b where b.chain_id = $1 and b.token > t.token order by b.token limit 1
    ) n
)
select t.token
from t
where exists (select from balances b where b.chain_id = $1 and b.token = t.token and b.address = $2)
