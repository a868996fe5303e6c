update chains c
set head_height = $2,
    final_height = greatest(c.final_height, $3),
    source_position = coalesce($4, c.source_position)
where c.chain_id = $1
  and (c.head_height is distinct from $2 or coalesce($3 > c.final_height, $3 is not null) or $4::jsonb is not null)
