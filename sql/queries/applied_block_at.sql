-- The newest block up to height $2 that a projection ($4) has applied: what the journal holds there, or what the chain
-- tables hold below $3, where the journal may have let go of blocks that are final. At one height the journal counts:
-- the chain tables may hold another branch already.
select height, hash, place = 1 as journaled
from (
    (select a.height, a.hash, 1 as place
     from applied_blocks a
     where a.chain_id = $1 and a.projection = $4 and a.height <= $2
     order by a.height desc
     limit 1)
    union all
    (select b.height, b.hash, 2
     from blocks b
     where b.chain_id = $1 and b.height <= $2 and b.height < $3
     order by b.height desc
     limit 1)
) found
order by height desc, place
limit 1
