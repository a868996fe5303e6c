-- The last heights of what the source declared complete hold no block: the checkpoint ($3 to $5) passes over them, to $6. To
-- the height of its block it may always return. What is stored there, and `writes`: as in apply.sql.
with complete as materialized (
    select c.chain_id
    from chains c
    where c.chain_id = $1 and c.complete_to >= $6 and c.writes = (select s.writes from chains s where s.chain_id = $1)
      and not exists (select from blocks b where b.chain_id = $1 and b.height > $4 and b.height <= $6)
    for share of c
)
update checkpoints k
set seq = k.seq + 1, through_height = $6, updated_at = now()
where k.chain_id = $1 and k.projection = $2 and k.seq = $3
  and k.height is not distinct from $4::bigint and k.hash is not distinct from $5::text
  and k.redo_from is null and k.halted_reason is null and (not k.paused or k.pause_at >= $6)
  and (k.height = $6 or exists (select from complete))
returning k.seq
