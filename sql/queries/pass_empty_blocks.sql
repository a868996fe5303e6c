-- The last heights of what the source declared complete hold no block: the checkpoint passes over them. To the height of
-- its block ($5, $6) it may always return.
with complete as materialized (
    select c.chain_id from chains c where c.chain_id = $1 and c.complete_to >= $4 for share
)
update checkpoints k
set seq = k.seq + 1, through_height = $4, updated_at = now()
where k.chain_id = $1 and k.projection = $2 and k.seq = $3
  and k.height is not distinct from $5 and k.hash is not distinct from $6
  and k.redo_from is null and k.halted_reason is null and (not k.paused or k.pause_at >= $4)
  and (k.height = $4 or exists (select from complete))
returning k.seq
