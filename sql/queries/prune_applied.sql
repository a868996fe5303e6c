-- The undo horizon: a block at or below the final height is not expected back. Only for a state that was compared as it
-- stands ($4: its seq), so that no difference goes with the journal.
with kept as (
    update checkpoints k
    set journal_from = $3::bigint + 1
    where k.chain_id = $1 and k.projection = $2 and k.seq = $4 and coalesce(k.journal_from, -1) <= $3
)
delete from applied_blocks a
using checkpoints k
where a.chain_id = $1 and a.projection = $2 and a.height <= $3
  and k.chain_id = $1 and k.projection = $2 and k.seq = $4
