-- What one account held at height $5 in each of the tokens in [$2, $3), in token order. Found by the number that stands for the
-- address (V7), and by nothing else, whatever the planner would rather: this costs one look-up for each token of the account,
-- not of the chain. Amounts at a height as in balances_of_token.sql.
select b.token, b.address, trunc(case when b.height <= $5 then b.amount else later.before end)::text as amount
from (
    select b.chain_id, b.balance_id, b.token, b.address, b.amount, b.height
    from balances b
    where hashtextextended(b.address, b.chain_id) = hashtextextended($4 collate "C", $1)
    offset 0
) b
left join lateral (
    select c.balance_after - c.delta as before, c.prev_height is not null as existed
    from balance_history c
    where b.height > $5
      and c.balance_id = b.balance_id and c.height > $5
    order by c.height
    limit 1
) later on true
where b.chain_id = $1 and b.address = $4 and b.token >= $2 and ($3::text is null or b.token < $3)
  and (b.height <= $5 or coalesce(later.existed, true))
  and ($6 or case when b.height <= $5 then b.amount else later.before end is distinct from 0)
order by b.token
limit $7
