-- Everything a projection's plan begins with, in one snapshot.
select c.kind, c.name, c.start_height, c.finality_depth, c.head_height, c.final_height, c.complete_to,
    k.height, k.hash, k.through_height, k.start_height as begun_at, k.seq, k.redo_from, k.deep_change, k.history_from,
    k.journal_from,
    k.paused, k.pause_at, k.halted_reason,
    (select min(b.height) from blocks b where b.chain_id = c.chain_id) as lowest,
    (select max(b.height) from blocks b where b.chain_id = c.chain_id) as highest
from chains c
join checkpoints k on k.chain_id = c.chain_id and k.projection = $2
where c.chain_id = $1
