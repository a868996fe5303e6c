-- note_written
-- With the blocks: where the source stands. The final height rises to $3, and falls where a reset ($5) took final blocks:
-- to the ancestor ($6; null: nothing is left of them). It is never above the last stored block ($7; null: there is none). What
-- the network calls itself ($8) is kept with the first blocks, and not before: one wrong answer must bind nobody.
update chains c
set head_height = $2,
    final_height = (
        select least(f.height, $7)
        from (select greatest($3, case
                  when not $5 then c.final_height
                  when $6::bigint is not null then least(c.final_height, $6) end)) as f (height)
        where f.height is not null and $7::bigint is not null),
    source_position = coalesce($4, c.source_position),
    network_id = case when $7::bigint is null then c.network_id else coalesce(c.network_id, $8) end
where c.chain_id = $1
