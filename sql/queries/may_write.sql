-- may_write
-- Whether blocks may go on top of block $2 ($3; null: of nothing): it is there, and nothing is above it unless that is to be
-- replaced ($4).
select ($3::text is null or exists (select from blocks b where b.chain_id = $1 and b.height = $2 and b.hash = $3))
    and ($4 or not exists (select from blocks b where b.chain_id = $1 and b.height > $2))
