-- Lines ($1 chain) that name an account a second time, and those whose account has an opening balance already ($2: which
-- is no fault, since those there go); the first $3 of them, with how many there are.
with given as (
    select g.line, g.token, g.address, first_value(g.line) over (partition by g.token, g.address order by g.line) as first_line
    from opening_given g
)
select g.line, g.token, g.address, nullif(g.first_line, g.line) as first_line, o.amount::text as stored,
    count(*) over () as refused
from given g
left join opening_balances o on o.chain_id = $1 and o.token = g.token and o.address = g.address and not $2
where g.first_line < g.line or o.amount is not null
order by g.line
limit $3
