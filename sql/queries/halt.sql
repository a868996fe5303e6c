update checkpoints k
set halted_reason = $4, updated_at = now()
where k.chain_id = $1 and k.projection = $2 and k.seq = $3 and k.halted_reason is null
