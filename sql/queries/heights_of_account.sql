-- The newest $5 heights up to $4 at which the account's balance in each of these tokens changed; `first` says that the
-- account had nothing in that token before.
select t.place, c.height, c.prev_height is null as first
from unnest($2::text[]) with ordinality t(token, place)
join balances b on b.chain_id = $1 and b.token = t.token and b.address = $3
cross join lateral (
    select c.height, c.prev_height
    from balance_history c
    where c.balance_id = b.balance_id and c.height <= $4
    order by c.height desc
    limit $5
) c
