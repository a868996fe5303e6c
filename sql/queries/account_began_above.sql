-- Of these tokens, those in which the account's first change of all lies above height $4.
select t.place
from unnest($2::text[]) with ordinality t(token, place)
join balances b on b.chain_id = $1 and b.token = t.token and b.address = $3
cross join lateral (
    select c.prev_height
    from balance_history c
    where c.balance_id = b.balance_id and c.height > $4
    order by c.height
    limit 1
) c
where c.prev_height is null
