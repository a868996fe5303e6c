-- stored_chain
-- All that a round of the syncer begins with, in one snapshot: the chain's row, our newest block, the height of our lowest,
-- and who is registered (null: the source is not told whom to follow).
select c.*, t.height as tip_height, t.hash as tip_hash,
    (select min(b.height) from blocks b where b.chain_id = c.chain_id) as lowest_height,
    case when c.listed_only then (
        select coalesce(jsonb_agg(to_jsonb(g) order by g.registered_at, g.address), '[]')
        from vault_registry g
        where g.chain_id = c.chain_id) end as vaults
from chains c
left join lateral (
    select b.height, b.hash from blocks b where b.chain_id = c.chain_id order by b.height desc limit 1
) t on true
where c.chain_id = $1
