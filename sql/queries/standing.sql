-- Where every projection of every chain stands: what the verdict is made from (chain::verdict), in one snapshot. Nothing here
-- grows with the chain; of the journal, the newest thousand blocks are compared with what is stored.
select c.name as chain, c.start_height, c.head_height, c.final_height, c.complete_to,
    b.lowest, t.height as tip_height, t.hash as tip_hash,
    p.name as projection, p.after, p.start_height as projection_start,
    k.height, k.hash, k.through_height, coalesce(k.seq, 0) as seq, k.redo_from, coalesce(k.paused, false) as paused, k.pause_at,
    k.history_from, k.updated_at, k.halted_reason, k.failed_height, k.failed_reason, coalesce(k.failures, 0) as failures,
    -- What stands on the applied height may be another block, and final blocks are in no journal.
    least(d.height, case when k.hash <> a.hash or k.height is not null and a.hash is null then k.height end) as differs_from,
    coalesce(extract(epoch from clock_timestamp() - coalesce(case when isfinite(a.time) then a.time end, k.updated_at)), 0)::float8
        as age_seconds,
    n.height as next_height, n.hash as next_hash, n.parent_hash as next_parent,
    r.reason as rebuild_reason, r.from_height, r.at_height, r.to_height, r.started_at,
    (select pg_notification_queue_usage()) as queue_usage, pg_is_in_recovery() as is_standby
from chains c
cross join lateral (select min(b.height) as lowest from blocks b where b.chain_id = c.chain_id) b
left join lateral (
    select b.height, b.hash from blocks b where b.chain_id = c.chain_id order by b.height desc limit 1
) t on true
left join projections p on coalesce(p.chain_id, c.chain_id) = c.chain_id and coalesce(p.kind, c.kind) = c.kind
left join checkpoints k on k.chain_id = c.chain_id and k.projection = p.name
left join rebuilds r on r.chain_id = c.chain_id and r.projection = p.name
left join blocks a on a.chain_id = c.chain_id and a.height = k.height
left join lateral (
    select min(j.height) as height
    from (
        select j.height, j.hash, j.revision
        from applied_blocks j
        where j.chain_id = c.chain_id and j.projection = p.name
        order by j.height desc
        limit 1000
    ) j
    left join blocks s on s.chain_id = c.chain_id and s.height = j.height
    where s.hash is distinct from j.hash or s.revision is distinct from j.revision
) d on true
left join lateral (
    select n.height, n.hash, n.parent_hash
    from blocks n
    where n.chain_id = c.chain_id and n.height > coalesce(k.through_height, c.start_height - 1, -1)
    order by n.height
    limit 1
) n on true
where $1::text is null or c.name = $1
order by c.name, p.name
