-- The vaults at these addresses ($2), and those of the rounds at these addresses, as their rows and the registry have them.
-- Where the source picks events by contract, a registered vault counts once it was caught up. One row a lookup, whatever the
-- planner knows.
select n.address as named, v.*, g.layout as registered_layout, g.from_height
from (
    select a.address from unnest($2::text[]) as a (address)
    union
    select r.vault_address
    from unnest($2::text[]) as a (address)
    cross join lateral (
        select r.vault_address from option_rounds r where r.chain_id = $1 and r.address = a.address limit 1
    ) r
) n
left join lateral (
    select v.* from vaults v where v.chain_id = $1 and v.address = n.address limit 1
) v on true
left join lateral (
    select g.layout, g.from_height
    from vault_registry g
    where g.chain_id = $1 and g.address = n.address
      and (g.caught_up or exists (select from chains c where c.chain_id = $1 and not c.listed_only))
    limit 1
) g on true
where v.address is not null or g.layout is not null
