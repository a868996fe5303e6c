-- How much evidence is kept of each projection on each chain, counted up to 100,000, and what it all takes on disk.
select c.name as chain, p.name as projection,
    (select count(*) from (select from reorgs o where o.chain_id = c.chain_id and o.projection = p.name limit 100000) o) as reorgs,
    (select count(*) from (select from rejected_events e where e.chain_id = c.chain_id limit 100000) e) as rejected_events,
    pg_total_relation_size('orphaned_blocks') + pg_total_relation_size('reorgs') + pg_total_relation_size('rejected_events')
        as bytes
from chains c
join projections p on coalesce(p.chain_id, c.chain_id) = c.chain_id and coalesce(p.kind, c.kind) = c.kind
