-- Rounds by address ($2), and by vault and number ($3, $4).
select r.*
from unnest($2::text[]) as w (address)
cross join lateral (select r.* from option_rounds r where r.chain_id = $1 and r.address = w.address limit 1) r
union all
select r.*
from unnest($3::text[], $4::numeric[]) as w (vault_address, round_id)
cross join lateral (
    select r.* from option_rounds r
    where r.chain_id = $1 and r.vault_address = w.vault_address and r.round_id = w.round_id limit 1
) r
