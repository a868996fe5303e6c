-- Where the block with this hash stands: its height if it is in the chain, what the journal of a projection ($3) holds at
-- that height, and whether a block of this hash was replaced once.
select b.height,
    (select a.hash from applied_blocks a
     where a.chain_id = $1 and a.projection = $3 and a.height = b.height) as journaled_hash,
    exists (select from orphaned_blocks o where o.chain_id = $1 and o.hash = $2) as replaced
from (select) one
left join lateral (
    select height from blocks where chain_id = $1 and hash = $2 order by height desc limit 1
) b on true
