-- All providers of some vaults ($2), and single ones ($3, $4: vault, address).
select p.*
from liquidity_providers p
where p.chain_id = $1 and p.vault_address = any ($2::text[])
union all
select p.*
from unnest($3::text[], $4::text[]) as w (vault_address, address)
cross join lateral (
    select p.* from liquidity_providers p
    where p.chain_id = $1 and p.vault_address = w.vault_address and p.address = w.address limit 1
) p
