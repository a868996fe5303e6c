-- Events the ledger refused: each must stand in a block that counts and is applied, as it was refused; and refused
-- must be just those whose token or account cannot be one on a chain of kind $3. The grammar of gno (a checksum) is not
-- repeated here: there, what is refused is taken as refused for a reason.
with ours as (
    select r.height, r.tx_index, r.event_index, r.block_hash, r.raw
    from rejected_events r
    where r.chain_id = $1 and r.projection = 'token_balances'
),
theirs as (
    select e.height, e.tx_index, e.event_index, v.hash as block_hash,
        jsonb_build_object('token', e.token, 'from_address', e.from_address, 'to_address', e.to_address,
            'amount', e.amount::text) as raw,
        case $3
            when 'evm' then (e.token ~ '^0x[0-9a-f]{40}$' and coalesce(e.from_address ~ '^0x[0-9a-f]{40}$', true)
                and coalesce(e.to_address ~ '^0x[0-9a-f]{40}$', true))
            when 'starknet' then (e.token ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$'
                and coalesce(e.from_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$', true)
                and coalesce(e.to_address ~ '^0x(0|[1-9a-f][0-9a-f]{0,62})$', true))
            when 'other' then true
        end as is_good
    from verify_counted v
    join token_events e on e.chain_id = $1 and e.height = v.height
    where v.height <= $2::bigint
)
select 'rejected event' as kind, format('%s/%s/%s', height, tx_index, event_index) as key,
    case when o.raw is null then 'taken' else format('refused in %s: %s', o.block_hash, o.raw) end as ours,
    case when t.raw is null then 'no such event'
         when t.is_good then 'to be taken'
         else format('to be refused in %s: %s', t.block_hash, t.raw) end as recomputed,
    count(*) over () as differences
from ours o
full join theirs t using (height, tx_index, event_index)
where case when o.raw is null then not t.is_good
           else coalesce(t.is_good, false) or (o.block_hash, o.raw) is distinct from (t.block_hash, t.raw) end
order by height, tx_index, event_index
limit $4
