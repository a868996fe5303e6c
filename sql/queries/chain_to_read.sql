-- The chain a request names, or up to two where it names none (two are one too many), with the block a projection ($2)
-- stands at. `changed_from`: what stands in the chain from there on, where no journal is, may not be what was applied; a
-- replay alone changes nothing. `window_from` is the lowest block whose undo is kept: below it every block present is applied.
select c.chain_id, c.name, c.kind, c.network_id, c.final_height,
    k.height, k.hash, k.through_height, k.history_from,
    case when k.redo_from is null then null
         when k.changed_seq = k.seq then k.changed_from
         when k.deep_change then k.redo_from end as changed_from,
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
