-- Accounts of the tokens below $4, after ($2, $3), in key order, as they stood at height $5: one walk along the primary
-- key, and for accounts that changed since one step into the history: the first change above the height, its result
-- without its delta. That change is kept even where older ones were pruned; where it is not, the amount is null.
select b.token, b.address, trunc(case when b.height <= $5 then b.amount else later.before end)::text as amount
from balances b
left join lateral (
    select c.balance_after - c.delta as before, c.prev_height is not null as existed
    from balance_history c
    where b.height > $5
      and c.balance_id = b.balance_id and c.height > $5
    order by c.height
    limit 1
) later on true
where b.chain_id = $1
  and (b.token, b.address) > ($2, $3)
  and b.token < $4
  and (b.height <= $5 or coalesce(later.existed, true))
  and ($6 or case when b.height <= $5 then b.amount else later.before end is distinct from 0)
order by b.token, b.address
limit $7
