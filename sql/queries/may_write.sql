-- Whether blocks may go on top of block $2 ($3; null: of nothing): it is there, and nothing is above it unless that is to be
-- replaced ($4). Where no block is above it, there must be no rows of one either: a trigger takes them away with their block, and
-- where it was off they would count for the block that comes instead.
select s.is_there and ($4 or s.is_highest), case when not $4 and s.is_highest then refuse_left_over($1, $2::bigint + 1) end
from (
    select $3::text is null or exists (select from blocks b where b.chain_id = $1 and b.height = $2 and b.hash = $3) as is_there,
        not exists (select from blocks b where b.chain_id = $1 and b.height > $2) as is_highest
) s
