-- The vaults that people registered on a chain ($1), once they count: see vaults_named.sql.
select g.address, g.layout as registered_layout, g.from_height
from vault_registry g
where g.chain_id = $1
  and (g.caught_up or exists (select from chains c where c.chain_id = $1 and not c.listed_only))
