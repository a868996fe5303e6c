-- How far each projection is on each chain; $1 narrows it to one chain.
select c.name as chain, k.projection, k.height, k.hash, k.through_height, k.history_from, k.redo_from, k.paused,
    k.pause_at, k.halted_reason, k.updated_at
from checkpoints k
join chains c on c.chain_id = k.chain_id
where $1::text is null or c.name = $1
order by c.name, k.projection
