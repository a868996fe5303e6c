-- Whose work waits for tables ($1), or for the rows at places ($2) of them, in their order: a row of the checkpoints or the blocks
-- is of a chain, a table may be a projection's.
select c.name as chain,
    coalesce(k.projection, t.projection,
        case when w.relation in ('ebbtide.balances', 'ebbtide.balance_history') then 'token_balances' end) as projection
from unnest($1::text[], $2::text[]) with ordinality w (relation, place, n)
left join checkpoints k on w.relation = 'ebbtide.checkpoints' and k.ctid = w.place::tid
left join tracked_tables t on t.relation = w.relation
-- By its place, however long the chain is.
left join lateral (
    select (select b.chain_id from blocks b where w.relation = 'ebbtide.blocks' and b.ctid = w.place::tid) as chain_id
) b on true
left join chains c on c.chain_id = coalesce(k.chain_id, b.chain_id)
order by w.n
