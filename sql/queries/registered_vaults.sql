-- registered_vaults
-- The vaults that people registered on a chain. Read in every round of its syncer.
select g.address, g.from_height, g.indexed_through, g.caught_up
from vault_registry g
where g.chain_id = $1
order by g.registered_at, g.address
