-- The last stored block below a height.
select height, hash
from blocks
where chain_id = $1 and height < $2
order by height desc
limit 1
