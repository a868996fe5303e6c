-- The first thing of a reorg transaction: nobody else moves this projection until it ends.
select k.redo_from, k.height, k.hash, k.through_height
from checkpoints k
where k.chain_id = $1 and k.projection = $2 and k.seq = $3 and k.halted_reason is null
for update
