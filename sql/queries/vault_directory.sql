-- Which of these addresses ($3) are followed vaults or their rounds at a height ($2), with the vault and how its events
-- are read. What people registered wins over what an earlier reading left. Where the source picks events by contract, a
-- registered vault counts once it was caught up.
select a.address, n.vault_address, coalesce(g.layout, v.layout) as layout
from unnest($3::text[]) as a (address)
left join option_rounds r on r.chain_id = $1 and r.address = a.address
cross join lateral (select coalesce(r.vault_address, a.address) as vault_address) n
left join vault_registry g
    on g.chain_id = $1 and g.address = n.vault_address and (g.from_height is null or g.from_height <= $2)
    and (g.caught_up or exists (select from chains c where c.chain_id = $1 and not c.listed_only))
left join vaults v on v.chain_id = $1 and v.address = n.vault_address
where coalesce(g.layout, v.layout) is not null
