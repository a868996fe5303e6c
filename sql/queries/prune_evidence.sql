-- Replaced blocks and reorganisations of more than $1 days ago, of each at most $2: among those with the lowest numbers, which
-- follow the time. So the primary keys find them, and what is kept costs nothing. In one order: two at once do not deadlock.
with blocks_gone as (
    delete from orphaned_blocks o
    where o.id = any (array(
        select a.id
        from (select id, replaced_at from orphaned_blocks order by id limit $2) a
        where a.replaced_at < now() - make_interval(days => $1)
        order by a.id))
    returning 1
),
reorgs_gone as (
    delete from reorgs r
    where r.id = any (array(
        select a.id
        from (select id, at from reorgs order by id limit $2) a
        where a.at < now() - make_interval(days => $1)
        order by a.id))
    returning 1
)
select (select count(*) from blocks_gone) as blocks, (select count(*) from reorgs_gone) as reorgs
