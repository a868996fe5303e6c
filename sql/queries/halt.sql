-- Only where it still stands as it did when it failed ($3 to $5): that state may have been predicted, and be another's.
update checkpoints k
set halted_reason = $6, updated_at = now()
where k.chain_id = $1 and k.projection = $2 and k.seq = $3
  and k.height is not distinct from $4::bigint and k.hash is not distinct from $5::text
  and k.halted_reason is null
