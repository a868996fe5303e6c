-- note_head
-- A head that brought no block. What is final is never above the last stored block ($5; null: there is none).
update chains c
set head_height = $2,
    final_height = case when $5::bigint is not null and coalesce(c.final_height, $3) is not null
        then least(greatest(c.final_height, $3), $5) end,
    source_position = coalesce($4, c.source_position)
where c.chain_id = $1
