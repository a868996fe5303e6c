-- All that a projection's next step is decided from (chain::decide), in one snapshot and one row.
--
-- $1 chain, $2 projection, $3 most blocks ahead. The window begins where the journal is whole, or where the projection is
-- told to stop (paused, or behind the one that it follows) if that is lower.
with state as materialized (
    select c.chain_id, c.kind, c.name, c.start_height, c.finality_depth, c.head_height, c.final_height, c.complete_to,
        k.height, k.hash, k.through_height, k.start_height as begun_at, k.seq, k.redo_from, k.deep_change, k.history_from,
        k.journal_from, k.paused, k.pause_at, k.halted_reason, k.apply_digest, k.failed_height, k.failed_reason, k.tells,
        p.name as projection, p.start_height as projection_start, p.after,
        case when p.apply is not null then apply_digest(p.apply) end as digest,
        a.height as after_height, a.hash as after_hash,
        case when k.paused then k.pause_at end as stops_at,
        b.lowest, b.highest,
        case when coalesce(c.start_height, b.lowest) is not null
             then greatest(coalesce(c.start_height, b.lowest), p.start_height) end as start
    from chains c
    join checkpoints k on k.chain_id = c.chain_id and k.projection = $2
    join projections p on p.name = k.projection
    left join checkpoints a on a.chain_id = c.chain_id and a.projection = p.after
    cross join lateral (
        select (select min(b.height) from blocks b where b.chain_id = c.chain_id) as lowest,
            (select max(b.height) from blocks b where b.chain_id = c.chain_id) as highest
    ) b
    where c.chain_id = $1
        -- One dropped and made again under its name may be another chain's now.
        and coalesce(p.chain_id, c.chain_id) = c.chain_id and coalesce(p.kind, c.kind) = c.kind
),
journal as materialized (
    select array_agg(j.height order by j.height) as heights, array_agg(j.hash order by j.height) as hashes,
        array_agg(j.revision order by j.height) as revisions, min(j.height) as lowest
    from state s
    join applied_blocks j on j.chain_id = s.chain_id and j.projection = s.projection
        and j.height >= coalesce(s.journal_from, -1)
),
bounds as materialized (
    select least(coalesce(s.journal_from, s.start), j.lowest, case when j.lowest is null then s.height end,
        s.stops_at + 1, case when s.after is not null then s.after_height + 1 end) as first
    from state s, journal j
    where s.through_height is not null
),
-- The window, and the next blocks above the checkpoint. Rows are counted only for blocks that announced how many they have.
around as materialized (
    select b.is_ahead, b.height, b.hash, b.parent_hash, b.revision,
        case when b.event_count is null then true
             else b.event_count = (select count(*) from token_events t where t.chain_id = b.chain_id and t.height = b.height)
                                + (select count(*) from events e where e.chain_id = b.chain_id and e.height = b.height)
        end as complete
    from (
        select false as is_ahead, b.chain_id, b.height, b.hash, b.parent_hash, b.revision, b.event_count
        from state s
        join bounds w on true
        join blocks b on b.chain_id = s.chain_id and b.height >= w.first and b.height <= s.through_height
        union all
        select true, b.chain_id, b.height, b.hash, b.parent_hash, b.revision, b.event_count
        from state s
        cross join lateral (
            select b.*
            from blocks b
            where b.chain_id = s.chain_id and b.height >= coalesce(s.height + 1, s.start)
              and b.height <= coalesce(s.stops_at, 9223372036854775807)
            order by b.height
            limit $3
        ) b
    ) b
),
blocks_around as materialized (
    select a.is_ahead, array_agg(a.height order by a.height) as heights, array_agg(a.hash order by a.height) as hashes,
        array_agg(a.parent_hash order by a.height) as parents, array_agg(a.revision order by a.height) as revisions,
        array_agg(a.complete order by a.height) as complete
    from around a
    group by a.is_ahead
)
select s.*,
    exists (select from sink_streams w where w.chain_id = s.chain_id and w.projection = s.projection and w.seq is null) as awaited,
    exists (select from blocks b where b.chain_id = s.chain_id and b.height = s.after_height and b.hash = s.after_hash) as after_stands,
    exists (select from projections f where f.after = s.projection and coalesce(f.chain_id, s.chain_id) = s.chain_id) as followed,
    j.heights as journal_heights, j.hashes as journal_hashes, j.revisions as journal_revisions,
    w.heights as stored_heights, w.hashes as stored_hashes, w.parents as stored_parents, w.revisions as stored_revisions,
    w.complete as stored_complete,
    n.heights as ahead_heights, n.hashes as ahead_hashes, n.parents as ahead_parents, n.revisions as ahead_revisions,
    n.complete as ahead_complete,
    l.height as below_height, l.hash as below_hash, r.height as redo_height, r.hash as redo_hash
from state s
cross join journal j
left join blocks_around w on not w.is_ahead
left join blocks_around n on n.is_ahead
left join bounds o on true
left join lateral (
    select b.height, b.hash from blocks b where b.chain_id = s.chain_id and b.height < o.first order by b.height desc limit 1
) l on true
left join lateral (
    select b.height, b.hash from blocks b
    where s.redo_from is not null and b.chain_id = s.chain_id and b.height < least(s.redo_from, s.height + 1)
    order by b.height desc limit 1
) r on true
