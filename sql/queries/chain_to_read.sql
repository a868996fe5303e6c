-- The chain a request names, or up to two where it names none (two are one too many), with the block a projection ($2)
-- stands at. `window_from` is the lowest block whose undo is kept: below it every block present is applied.
select c.chain_id, c.name, c.kind, c.network_id, c.final_height,
    k.height, k.hash, k.through_height, k.history_from, k.redo_from,
    (select a.height
     from applied_blocks a
     where a.chain_id = c.chain_id and a.projection = $2
     order by a.height
     limit 1) as window_from
from chains c
left join checkpoints k on k.chain_id = c.chain_id and k.projection = $2
where $1::text is null or c.name = $1
order by c.chain_id
limit 2
