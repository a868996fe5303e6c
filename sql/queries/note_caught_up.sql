-- note_caught_up
-- All that a vault said up to $3 is stored; nobody changed what was asked for ($4, $5) meanwhile. At the tip it counts from
-- now on.
update vault_registry g
set indexed_through = $3,
    caught_up = g.caught_up or not exists (select from blocks b where b.chain_id = $1 and b.height > $3)
where g.chain_id = $1
  and g.address = $2
  and g.from_height is not distinct from $4
  and g.indexed_through is not distinct from $5
returning g.caught_up
