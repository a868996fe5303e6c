-- put_missed_transactions
-- Transactions of stored blocks ($2: an array of rows) that are not there yet.
insert into transactions (chain_id, height, tx_index, hash, success)
select $1, m.height, m.tx_index, m.hash, m.success
from jsonb_to_recordset($2::jsonb) as m (height bigint, tx_index bigint, hash text, success boolean)
on conflict (chain_id, height, tx_index) do nothing
