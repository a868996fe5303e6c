-- Some balances of a chain ($1 its name, $2 how many), chosen again each time, with the block they are true at; one row
-- without a token where there is none. All of one statement, so of one moment.
select c.kind, c.network_id, k.height, k.hash, b.token, b.address, b.amount
from chains c
left join checkpoints k on k.chain_id = c.chain_id and k.projection = 'token_balances'
left join lateral (select s.token, s.address, s.amount
                   from balances s
                   where s.chain_id = c.chain_id
                   order by random()
                   limit $2) b on true
where c.chain_id = chain_named($1)
