-- A block could not be applied on the state that it was sent for ($3 to $5); the next one that can be takes the note away.
update checkpoints k
set failed_height = $6, failed_reason = $7, failures = k.failures + 1, updated_at = now()
where k.chain_id = $1 and k.projection = $2 and k.seq = $3
  and k.height is not distinct from $4::bigint and k.hash is not distinct from $5::text
