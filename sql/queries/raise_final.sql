-- raise_final
-- Chains that no source follows: final is what lies the finality depth below what is applied, as far as it is stored.
update chains c
set final_height = least($2, (select max(b.height) from blocks b where b.chain_id = c.chain_id))
where c.chain_id = $1
  and c.head_height is null
  and coalesce(c.final_height, -1) < least($2, (select max(b.height) from blocks b where b.chain_id = c.chain_id))
