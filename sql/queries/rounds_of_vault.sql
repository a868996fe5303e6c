-- Rounds of the vault $2 after number $3 (null: from the first), in the order of their numbers.
select r.*
from option_rounds r
where r.chain_id = $1 and r.vault_address = $2 and r.round_id > coalesce($3::numeric, -1)
order by r.round_id
limit $4
