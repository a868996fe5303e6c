-- The round at the address $2.
select r.*
from option_rounds r
where r.chain_id = $1 and r.address = $2
