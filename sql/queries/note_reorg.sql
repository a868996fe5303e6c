insert into reorgs (chain_id, projection, ancestor, depth, old_tip_height, old_tip_hash, new_tip_height, new_tip_hash,
    blocks_undone, blocks_applied, rows_touched, duration_ms)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
returning id
