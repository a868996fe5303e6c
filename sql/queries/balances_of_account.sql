-- What one account held at height $5 in each of the tokens in [$2, $3), in token order. There is no index by address
-- (it would be a random-key index on the busiest table): the tokens are found by skipping from one to the next in the
-- primary key, so this costs one or two lookups for each token of the chain, whatever the number of accounts. Amounts at
-- a height as in balances_of_token.sql.
with recursive t as (
    (select b.token
     from balances b
     where b.chain_id = $1 and b.token >= $2 and ($3::text is null or b.token < $3)
     order by b.token
     limit 1)
    union all
    select n.token
    from t
    cross join lateral (
        select b.token
        from balances b
        where b.chain_id = $1 and b.token > t.token and ($3::text is null or b.token < $3)
        order by b.token
        limit 1
    ) n
)
select t.token, b.address, trunc(case when b.height <= $5 then b.amount else later.before end)::text as amount
from t
cross join lateral (
    select b.balance_id, b.address, b.amount, b.height
    from balances b
    where b.chain_id = $1 and b.token = t.token and b.address = $4
    offset 0
) b
left join lateral (
    select c.balance_after - c.delta as before, c.prev_height is not null as existed
    from balance_history c
    where b.height > $5
      and c.balance_id = b.balance_id and c.height > $5
    order by c.height
    limit 1
) later on true
where (b.height <= $5 or coalesce(later.existed, true))
  and ($6 or case when b.height <= $5 then b.amount else later.before end is distinct from 0)
limit $7
