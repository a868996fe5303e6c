-- What the account $2 has won and paid too much in each round after $3.
select b.*
from option_buyers b
where b.chain_id = $1 and b.address = $2 and b.round_address > $3
order by b.round_address
limit $4
