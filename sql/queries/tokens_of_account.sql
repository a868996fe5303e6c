-- Tokens in which the account ever had an event, in token order. Found as in balances_of_account.sql.
select b.token
from (
    select b.chain_id, b.token, b.address
    from balances b
    where hashtextextended(b.address, b.chain_id) = hashtextextended($2 collate "C", $1)
    offset 0
) b
where b.chain_id = $1 and b.address = $2
order by b.token
