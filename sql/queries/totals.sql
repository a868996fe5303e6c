-- Sums per token over all accounts, in token order, for the tokens in [$2, $3) as they stood at height $4.
-- The tokens are found by skipping from one to the next in the primary key, so a page costs the accounts of its own
-- tokens and not those of the whole chain. Balances that changed since are taken from the first change above the height
-- (its result without its delta); where that is not kept, the amount is unknown: null.
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
select t.token, '' as address, case when not s.unknown then trunc(s.total)::text end as amount
from t
cross join lateral (
    select sum(case when b.height <= $4 then b.amount else later.before end) as total,
        bool_or(b.height > $4 and not coalesce(later.known, false)) as unknown
    from balances b
    left join lateral (
        select c.balance_after - c.delta as before, c.prev_height is not null as existed, true as known
        from balance_history c
        where b.height > $4
          and c.balance_id = b.balance_id and c.height > $4
        order by c.height
        limit 1
    ) later on true
    where b.chain_id = $1 and b.token = t.token and (b.height <= $4 or coalesce(later.existed, true))
) s
where s.unknown or s.total is not null and ($5 or s.total <> 0)
limit $6
