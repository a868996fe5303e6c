-- The undo horizon: a block at or below the final height is not expected back.
delete from applied_blocks a
where a.chain_id = $1 and a.projection = $2 and a.height <= $3
