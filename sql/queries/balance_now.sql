
-- Goes on from chain_now.sql as `chain`: what the account has in exactly this token. $4 and $5 are token and address as the
-- kinds of chains in $3 spell them. Nearly every request of this kind is answered by this: each node and column counts.
select chain.*, b.token, b.address, trunc(b.amount)::text as amount
from chain
left join balances b on b.chain_id = chain.chain_id
    and b.token = ($4::text[])[array_position($3::text[], chain.kind)]
    and b.address = ($5::text[])[array_position($3::text[], chain.kind)]
