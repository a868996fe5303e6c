-- Of these tokens, those in which the account's first change of all lies above height $4.
select t.place
from unnest($2::text[]) with ordinality t(token, place)
cross join lateral (
    select c.prev_height
    from balance_changes c
    where c.chain_id = $1 and c.token = t.token and c.address = $3 and c.height > $4
    order by c.height
    limit 1
) c
where c.prev_height is null
