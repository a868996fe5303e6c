-- Projections with tracked tables ($2: one of them) on each chain ($1: one of them) where they have begun.
select c.chain_id, c.name as chain, p.name as projection, p.apply is not null as is_function, p.after is not null as follows
from projections p
join checkpoints k on k.projection = p.name
join chains c on c.chain_id = k.chain_id
where p.name <> 'token_balances'
  and ($1::text is null or c.name = $1)
  and ($2::text is null or p.name = $2)
order by p.name, c.name
