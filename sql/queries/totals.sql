-- Sums per token over all accounts, in token order, for the tokens in [$2, $3) as they stood at height $4.
-- The tokens are found by skipping from one to the next in the primary key, so a page costs the accounts of its own
-- tokens and not those of the whole chain.
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
select t.token, trunc(s.total)::text as amount
from t
cross join lateral (
    select sum(coalesce(then_.balance_after, b.amount)) as total
    from balances b
    left join lateral (
        select c.balance_after
        from balance_changes c
        where b.height > $4
          and c.chain_id = b.chain_id and c.token = b.token and c.address = b.address and c.height <= $4
        order by c.height desc
        limit 1
    ) then_ on true
    where b.chain_id = $1 and b.token = t.token and (b.height <= $4 or then_.balance_after is not null)
) s
where s.total is not null and ($5 or s.total <> 0)
limit $6
