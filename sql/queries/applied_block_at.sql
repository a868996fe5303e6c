-- The newest applied block up to height $2. Inside the window the journal names it (the chain tables may hold another
-- branch already); below the window, $3, the chain tables do.
select height, hash
from (
    (select 1 as place, a.height, a.hash
     from applied_blocks a
     where a.chain_id = $1 and a.projection = 'token_balances' and a.height <= $2
     order by a.height desc
     limit 1)
    union all
    (select 2, b.height, b.hash
     from blocks b
     where b.chain_id = $1 and b.height <= $2 and b.height < $3
     order by b.height desc
     limit 1)
) found
order by place
limit 1
