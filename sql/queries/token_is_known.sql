-- Whether any account ever had an event of exactly this token.
select exists (select from balances where chain_id = $1 and token = $2)
