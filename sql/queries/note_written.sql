-- With the blocks: where the source stands. After a reset ($5) the final height falls to the ancestor ($6);
-- without one nothing of what was final is left (least alone would skip the null and keep it).
update chains c
set head_height = $2,
    final_height = case
        when $5 and $6::bigint is null then $3
        when $5 then greatest(least(c.final_height, $6), $3)
        else greatest(c.final_height, $3) end,
    source_position = coalesce($4, c.source_position)
where c.chain_id = $1
