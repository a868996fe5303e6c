-- Vaults by address.
select v.*
from unnest($2::text[]) as w (address)
join vaults v on v.chain_id = $1 and v.address = w.address
