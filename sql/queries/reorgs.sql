-- Reorganisations below id $2, newest first; $1 narrows them to one chain.
select r.id, c.name as chain, r.projection, r.ancestor, r.depth, r.old_tip_height, r.old_tip_hash,
    r.new_tip_height, r.new_tip_hash, r.blocks_undone, r.blocks_applied, r.rows_touched, r.duration_ms, r.at
from reorgs r
join chains c on c.chain_id = r.chain_id
where r.id < $2 and ($1::text is null or c.name = $1)
order by r.id desc
limit $3
