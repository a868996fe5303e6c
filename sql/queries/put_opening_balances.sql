insert into opening_balances (chain_id, token, address, amount)
select $1, o.token, o.address, o.amount
from unnest($2::text[], $3::text[], $4::numeric[]) as o (token, address, amount)
on conflict (chain_id, token, address) do update set amount = excluded.amount
