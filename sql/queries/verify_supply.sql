-- Tokens whose balances do not add up to what was minted less what was burnt since the opening balances: transfers
-- take part on neither side.
with recomputed as (
    select token, sum(amount) as supply
    from (
        select token, amount from opening_balances where chain_id = $1 and $2::bigint is not null
        union all
        select e.token,
            case when e.from_address is null then e.amount when e.to_address is null then -e.amount else 0 end
        from verify_counted v
        join token_events e on e.chain_id = $1 and e.height = v.height
        where v.height <= $2::bigint
          and not exists (
              select from rejected_events r
              where r.chain_id = $1 and r.projection = 'token_balances'
                and r.height = e.height and r.tx_index = e.tx_index and r.event_index = e.event_index)
    ) s
    group by token
),
ours as (
    select token, sum(amount) as supply from balances where chain_id = $1 group by token
)
select 'supply' as kind, token as key,
    coalesce(trunc(o.supply)::text, 'no row') as ours, coalesce(trunc(r.supply)::text, 'no row') as recomputed,
    count(*) over () as differences
from ours o
full join recomputed r using (token)
where o.supply is distinct from r.supply
order by token
limit $3
