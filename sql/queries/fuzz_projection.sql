-- A projection of an SQL function ($1), and the chain whose events its random blocks are made of: the one given ($2), the
-- one it is about, or the first that has blocks. chain_id: the one chain that a table of it can hold.
select case when exists (select from tracked_tables k where k.projection = p.name and not k.by_chain) then p.chain_id
       end as chain_id, p.after is not null as follows, greatest(coalesce(p.start_height, 0), 1) as base,
    l.chain_id as like_chain, coalesce(p.kind, l.kind, 'other') as kind
from projections p
left join lateral (
    select c.chain_id, c.kind
    from chains c
    where case when $2::text is not null then c.chain_id = chain_named($2)
               else p.chain_id is null or c.chain_id = p.chain_id end
    order by not exists (select from blocks b where b.chain_id = c.chain_id), c.chain_id
    limit 1
) l on true
where p.name = $1 and p.apply is not null
