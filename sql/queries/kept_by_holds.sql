-- Whose work waits for tables ($1), or for the rows at places ($2) of them, in their order: a row of the checkpoints or the blocks
-- is of a chain, a table may be a projection's.
select c.name as chain, coalesce(k.projection, p.name) as projection
from unnest($1::text[], $2::text[]) with ordinality w (relation, place, n)
left join checkpoints k on w.relation = 'ebbtide.checkpoints' and k.ctid = w.place::tid
-- Those of the balances are named without their schema.
left join lateral (
    select p.name from projections p where p.tables && array[w.relation, substring(w.relation from '^ebbtide[.](.*)$')] limit 1
) p on true
-- By its place, however long the chain is.
left join lateral (
    select (select b.chain_id from blocks b where w.relation = 'ebbtide.blocks' and b.ctid = w.place::tid) as chain_id
) b on true
left join chains c on c.chain_id = coalesce(k.chain_id, b.chain_id)
order by w.n
