-- The journal above the final height, with its size bounded by the finality depth.
select height, hash, revision
from applied_blocks
where chain_id = $1 and projection = $2
order by height
