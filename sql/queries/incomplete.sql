-- Next blocks ($1 chains, $2 heights) that announced more rows than are there, or fewer.
select c.name as chain, b.height, b.event_count as announced, n.present
from unnest($1::text[], $2::bigint[]) w (chain, height)
join chains c on c.name = w.chain
join blocks b on b.chain_id = c.chain_id and b.height = w.height
cross join lateral (
    select (select count(*) from token_events t where t.chain_id = b.chain_id and t.height = b.height)
         + (select count(*) from events e where e.chain_id = b.chain_id and e.height = b.height) as present
) n
where b.event_count <> n.present
