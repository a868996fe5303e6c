
-- Goes on from chain_to_read.sql as `chain`: what the account has in exactly this token. $4 and $5 are token and address as
-- the kinds of chains in $3 spell them.
select chain.*, known.token_is_known, page.tokens, page.addresses, page.amounts
from chain
cross join lateral (
    select ($4::text[])[p.place] as token, ($5::text[])[p.place] as address
    from (select array_position($3::text[], chain.kind) as place) p
) spelt
cross join lateral (
    select exists (
        select from balances b where b.chain_id = chain.chain_id and b.token = spelt.token
    ) as token_is_known
) known
left join lateral (
    select array[b.token] as tokens, array[b.address] as addresses, array[trunc(b.amount)::text] as amounts
    from balances b
    where b.chain_id = chain.chain_id and b.token = spelt.token and b.address = spelt.address
) page on true
