-- Holds the checkpoint of a projection ($2) on a chain ($1), if it has applied any block. Its snapshot is that of all that
-- is read after it.
select k.height, k.hash, k.start_height, k.redo_from, c.complete_to,
    coalesce(c.start_height, (select min(b.height) from blocks b where b.chain_id = c.chain_id)) as chain_start,
    p.apply is not null and k.apply_digest is distinct from apply_digest(p.apply) as is_made_otherwise
from checkpoints k
join chains c on c.chain_id = k.chain_id
join projections p on p.name = k.projection
where k.chain_id = $1 and k.projection = $2 and k.height is not null
for update of k
