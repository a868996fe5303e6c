-- The first thing of a transaction that undoes or begins: nobody else moves this projection until it ends. $3 to $8: the
-- checkpoint as it was read: its seq, the block it stands on, from where it is to be applied again, and how far back its
-- history and its journal reach. Pruning these moves no seq and takes along what undoing needs. No row: it is another by now.
select from checkpoints k
where k.chain_id = $1 and k.projection = $2 and k.seq = $3
  and k.height is not distinct from $4::bigint and k.hash is not distinct from $5::text
  and k.redo_from is not distinct from $6::bigint
  and k.history_from is not distinct from $7::bigint and k.journal_from is not distinct from $8::bigint
  and k.halted_reason is null
for update
