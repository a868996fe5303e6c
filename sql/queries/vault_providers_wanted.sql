-- All providers of some vaults ($2), and single ones ($3, $4: vault, address).
select p.*
from unnest($2::text[]) as w (vault_address)
join liquidity_providers p on p.chain_id = $1 and p.vault_address = w.vault_address
union all
select p.*
from unnest($3::text[], $4::text[]) as w (vault_address, address)
join liquidity_providers p on p.chain_id = $1 and p.vault_address = w.vault_address and p.address = w.address
