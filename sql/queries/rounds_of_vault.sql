-- Rounds of the vault $2 after number $3, in the order of their numbers.
select r.*
from option_rounds r
where r.chain_id = $1 and r.vault_address = $2 and r.round_id > $3
order by r.round_id
limit $4
