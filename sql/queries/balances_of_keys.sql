-- What stands of these keys ($2 tokens, $3 addresses), in their order; a number for the balance where nothing stands yet.
select b.balance_id, b.amount, b.height,
    case when b.balance_id is null then nextval((select pg_get_serial_sequence('balances', 'balance_id')::regclass)) end as new_id
from unnest($2::text[], $3::text[]) with ordinality k (token, address, place)
left join balances b on b.chain_id = $1 and b.token = k.token and b.address = k.address
order by k.place
