-- Every chain, or one by its name, with the ledger's checkpoint on it.
select c.chain_id, c.name, c.kind, c.final_height, c.complete_to,
    coalesce(c.start_height, (select min(b.height) from blocks b where b.chain_id = c.chain_id)) as start_height,
    k.height, k.hash, k.through_height, k.start_height as begun_at, k.history_from, k.redo_from,
    coalesce(k.paused, false) as paused, k.halted_reason
from chains c
left join checkpoints k on k.chain_id = c.chain_id and k.projection = 'token_balances'
where $1::text is null or c.name = $1
order by c.name
