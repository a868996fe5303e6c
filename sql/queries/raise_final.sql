-- Chains that no source follows: final is what lies the finality depth below what is applied.
update chains c
set final_height = $2
where c.chain_id = $1 and c.head_height is null and coalesce(c.final_height, -1) < $2
