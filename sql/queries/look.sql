-- Everything a projection's plan begins with, in one snapshot.
select c.kind, c.name, c.start_height, c.finality_depth, c.head_height, c.final_height, c.complete_to,
    k.height, k.hash, k.through_height, k.start_height as begun_at, k.seq, k.redo_from, k.deep_change, k.history_from,
    k.journal_from,
    k.paused, k.pause_at, k.halted_reason, k.apply_digest, k.failed_height, k.failed_reason,
    p.start_height as projection_start, apply_digest(p.apply) as digest, p.after,
    a.height as after_height, a.hash as after_hash,
    exists (select from blocks b where b.chain_id = c.chain_id and b.height = a.height and b.hash = a.hash) as after_stands,
    exists (select from projections f where f.after = p.name and coalesce(f.chain_id, c.chain_id) = c.chain_id) as followed,
    (select min(b.height) from blocks b where b.chain_id = c.chain_id) as lowest,
    (select max(b.height) from blocks b where b.chain_id = c.chain_id) as highest
from chains c
join checkpoints k on k.chain_id = c.chain_id and k.projection = $2
join projections p on p.name = k.projection
left join checkpoints a on a.chain_id = c.chain_id and a.projection = p.after
where c.chain_id = $1
    -- One dropped and made again under its name may be another chain's now.
    and coalesce(p.chain_id, c.chain_id) = c.chain_id and coalesce(p.kind, c.kind) = c.kind
