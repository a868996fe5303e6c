-- blocks_that_stand
-- How many of these blocks ($2 heights, $3 hashes) are the stored ones.
select count(*)
from unnest($2::bigint[], $3::text[]) as w (height, hash)
join blocks b on b.chain_id = $1 and b.height = w.height and b.hash = w.hash
