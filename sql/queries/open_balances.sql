-- What stood before the first block, as changes at the height before it ($2: may be -1).
with opened as (
    insert into balances (chain_id, token, address, amount, height)
    select o.chain_id, o.token, o.address, o.amount, $2
    from opening_balances o
    where o.chain_id = $1
    order by o.token, o.address
    returning token, address, amount
),
journalled as (
    insert into balance_changes (chain_id, token, address, height, delta, balance_after, prev_height)
    select $1, token, address, $2, amount, amount, null
    from opened
)
select count(*) from opened
