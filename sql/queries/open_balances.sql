-- What stood before the first block, as changes at the height before it ($2: may be -1).
with opened as (
    insert into balances (chain_id, token, address, amount, height)
    select o.chain_id, o.token, o.address, o.amount, $2
    from opening_balances o
    where o.chain_id = $1
    order by o.token, o.address
    returning balance_id, token, amount
),
summed as (
    insert into token_totals (chain_id, token, total)
    select $1, token, sum(amount) from opened group by token
    on conflict (chain_id, token) do update set total = token_totals.total + excluded.total
),
journalled as (
    insert into balance_history (balance_id, chain_id, height, delta, balance_after, prev_height)
    select balance_id, $1, $2, amount, amount, null
    from opened
)
select count(*) from opened
