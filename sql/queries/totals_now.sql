
-- Goes on from chain_now.sql as `chain`: sums per token over all accounts of the tokens above $3, in token order. With zeros
-- ($4), the tokens are found as in totals.sql: one whose sum never was another has no row in token_totals.
select chain.*, false as token_is_known, page.tokens, page.addresses, page.amounts
from chain
left join lateral (
    select array_agg(found.token) as tokens, array_agg(''::text) as addresses, array_agg(trunc(found.total)::text) as amounts
    from (
        (select s.token, s.total
         from token_totals s
         where not $4 and s.chain_id = chain.chain_id and s.token > $3 and s.total <> 0
         order by s.token
         limit $5)
        union all
        (with recursive t as (
            (select b.token
             from balances b
             where $4 and b.chain_id = chain.chain_id and b.token > $3
             order by b.token
             limit 1)
            union all
            select n.token
            from t
            cross join lateral (
                select b.token
                from balances b
                where b.chain_id = chain.chain_id and b.token > t.token
                order by b.token
                limit 1
            ) n
         )
         select t.token,
             coalesce((select s.total from token_totals s where s.chain_id = chain.chain_id and s.token = t.token), 0)
         from t
         limit $5)
    ) found
) page on true
