
-- Goes on from chain_to_read.sql as `chain`: what one account has in the tokens above $5, in token order. $4 is its address
-- as the kinds of chains in $3 spell it. Found as in balances_of_account.sql.
select chain.*, false as token_is_known, page.tokens, page.addresses, page.amounts
from chain
cross join lateral (
    select ($4::text[])[array_position($3::text[], chain.kind)] as address
) spelt
left join lateral (
    select array_agg(found.token) as tokens, array_agg(found.address) as addresses, array_agg(found.amount) as amounts
    from (
        with recursive t as (
            (select b.token
             from balances b
             where b.chain_id = chain.chain_id and b.token > $5
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
        select b.token, b.address, trunc(b.amount)::text as amount
        from t
        cross join lateral (
            select b.token, b.address, b.amount
            from balances b
            where b.chain_id = chain.chain_id and b.token = t.token and b.address = spelt.address
            offset 0
        ) b
        where $6 or b.amount <> 0
        limit $7
    ) found
) page on true
