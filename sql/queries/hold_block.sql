-- The ancestor of a reorg must stay what it is until the transaction ends; no row: someone is changing it.
select b.revision
from blocks b
where b.chain_id = $1 and b.height = $2 and b.hash = $3
for share skip locked
