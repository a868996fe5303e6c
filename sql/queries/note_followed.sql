-- note_followed
-- Blocks up to $2 came with the events of these vaults ($3), on top of block $4 (null: of nothing). One whose row was
-- changed meanwhile, or that lacks something below, is left to be caught up.
update vault_registry g
set indexed_through = $2, caught_up = true
where g.chain_id = $1
  and g.address = any ($3::text[])
  and ($4::bigint is null or g.indexed_through >= $4)
