-- Raises the revisions of the blocks that hold refused events ($1 chain, $2 the projection that refused them, $3 the
-- height, null for any): they are redone in their own place, by every projection. What a source refused is in no table
-- that could be read again.
with wanted as materialized (
    select r.height, count(*) as events
    from rejected_events r
    where r.chain_id = $1 and r.projection <> 'source'
      and ($2::text is null or r.projection = $2) and ($3::bigint is null or r.height = $3)
    group by r.height
),
raised as (
    update blocks b
    set revision = default
    from wanted w
    where b.chain_id = $1 and b.height = w.height
    returning w.height, w.events
)
select count(*) as blocks, coalesce(sum(r.events), 0)::bigint as events, min(r.height) as lowest,
    count(*) filter (where r.height <= c.final_height) as final_blocks, c.final_height
from chains c
left join raised r on true
where c.chain_id = $1
group by c.final_height
