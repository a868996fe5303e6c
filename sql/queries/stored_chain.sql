-- stored_chain
-- All that a syncer begins with, in one snapshot: the chain's row, our newest block and the height of our lowest.
select c.*, t.height as tip_height, t.hash as tip_hash,
    (select min(b.height) from blocks b where b.chain_id = c.chain_id) as lowest_height
from chains c
left join lateral (
    select b.height, b.hash from blocks b where b.chain_id = c.chain_id order by b.height desc limit 1
) t on true
where c.chain_id = $1
