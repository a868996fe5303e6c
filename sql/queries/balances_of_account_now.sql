
-- Goes on from chain_now.sql as `chain`: what one account has in the tokens above $5, in token order. $4 is its address
-- as the kinds of chains in $3 spell it. Found as in balances_of_account.sql.
select chain.*, false as token_is_known, page.tokens, page.addresses, page.amounts
from chain
cross join lateral (
    select ($4::text[])[array_position($3::text[], chain.kind)] as address
) spelt
left join lateral (
    select array_agg(found.token) as tokens, array_agg(found.address) as addresses, array_agg(found.amount) as amounts
    from (
        select b.token, b.address, trunc(b.amount)::text as amount
        from (
            select b.chain_id, b.token, b.address, b.amount
            from balances b
            where hashtextextended(b.address, b.chain_id) = hashtextextended(spelt.address collate "C", chain.chain_id)
            offset 0
        ) b
        where b.chain_id = chain.chain_id and b.address = spelt.address and b.token > $5 and ($6 or b.amount <> 0)
        order by b.token
        limit $7
    ) found
) page on true
