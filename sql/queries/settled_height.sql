-- The lowest block up to $2 that a projection ($3) has applied but is not what the chain tables say now. The journal is pruned at the
-- final height, so this reads few rows.
select a.height
from applied_blocks a
left join blocks b on b.chain_id = a.chain_id and b.height = a.height
where a.chain_id = $1
  and a.projection = $3
  and a.height <= $2
  and (b.hash is distinct from a.hash or b.revision is distinct from a.revision)
order by a.height
limit 1
