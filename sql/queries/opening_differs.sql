-- Whether the opening balances are others by now than the ones taken into this transaction ($2: their height).
select exists (
    (select o.token, o.address, o.amount from opening_balances o where o.chain_id = $1
     except
     select c.token, c.address, c.delta from balance_changes c where c.chain_id = $1 and c.height = $2)
    union all
    (select c.token, c.address, c.delta from balance_changes c where c.chain_id = $1 and c.height = $2
     except
     select o.token, o.address, o.amount from opening_balances o where o.chain_id = $1)
) as differs
