-- Where every projection of every chain stands.
select c.name as chain, p.name as projection, c.head_height, c.final_height,
    (select max(b.height) from blocks b where b.chain_id = c.chain_id) as tip_height,
    k.through_height as applied_height, k.hash as applied_hash,
    greatest(0, coalesce(greatest(c.head_height, (select max(b.height) from blocks b where b.chain_id = c.chain_id))
        - coalesce(k.through_height, c.start_height - 1,
            (select min(b.height) - 1 from blocks b where b.chain_id = c.chain_id)), 0)) as lag_blocks,
    k.redo_from, coalesce(k.paused, false) as paused, k.halted_reason,
    k.failed_height, k.failed_reason, coalesce(k.failures, 0) as failures,
    r.reason as rebuild_reason, r.from_height, r.at_height, r.to_height, r.started_at,
    (select count(*) from reorgs o where o.chain_id = c.chain_id and o.projection = p.name) as reorgs,
    (select count(*) from rejected_events e where e.chain_id = c.chain_id) as rejected_events
from chains c
join projections p on coalesce(p.chain_id, c.chain_id) = c.chain_id and coalesce(p.kind, c.kind) = c.kind
left join checkpoints k on k.chain_id = c.chain_id and k.projection = p.name
left join rebuilds r on r.chain_id = c.chain_id and r.projection = p.name
order by c.name, p.name
