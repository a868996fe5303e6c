-- Accounts of the tokens below $4, after ($2, $3), in key order, as they stood at height $5: one walk along the primary
-- key, and for accounts that changed since one step into the history.
select b.token, b.address, trunc(coalesce(then_.balance_after, b.amount))::text as amount
from balances b
left join lateral (
    select c.balance_after
    from balance_changes c
    where b.height > $5
      and c.chain_id = b.chain_id and c.token = b.token and c.address = b.address and c.height <= $5
    order by c.height desc
    limit 1
) then_ on true
where b.chain_id = $1
  and (b.token, b.address) > ($2, $3)
  and b.token < $4
  and (b.height <= $5 or then_.balance_after is not null)
  and ($6 or coalesce(then_.balance_after, b.amount) <> 0)
order by b.token, b.address
limit $7
