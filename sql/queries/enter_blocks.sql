-- Begins a block, or several final ones, and lets the projection's tables be written: see begin_block and enter_block.
-- Null: the fence did not hold, and nothing is begun. $13 height of the last block, $14 how the tables are tracked.
with begun as materialized (
    select begin_block($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) as seq
)
select b.seq, e.*
from begun b
left join lateral (
    select check_shapes($2), set_config('search_path', enter_block($2, $1, $13, $14), true) where b.seq is not null
) e on true
