
-- Goes on from chain_now.sql as `chain`: the accounts above $5 of exactly one token, which is $4 as the kinds of chains
-- in $3 spell it, in key order: one walk along the primary key.
select chain.*, known.token_is_known, page.tokens, page.addresses, page.amounts
from chain
cross join lateral (
    select ($4::text[])[array_position($3::text[], chain.kind)] as token
) spelt
cross join lateral (
    select exists (
        select from balances b where b.chain_id = chain.chain_id and b.token = spelt.token
    ) as token_is_known
) known
left join lateral (
    select array_agg(found.token) as tokens, array_agg(found.address) as addresses, array_agg(found.amount) as amounts
    from (
        select b.token, b.address, trunc(b.amount)::text as amount
        from balances b
        where b.chain_id = chain.chain_id and b.token = spelt.token and b.address > $5 and ($6 or b.amount <> 0)
        order by b.address
        limit $7
    ) found
) page on true
