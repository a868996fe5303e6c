-- Every change of every balance that follows from the events of the blocks that count up to $2, opening balances
-- first (at the height before the start $3). Refused events are left out; verify_rejected.sql looks at those.
insert into verify_changes (token, address, height, delta, balance_after, prev_height)
with taken as (
    select e.height, e.token, e.from_address, e.to_address, e.amount
    from verify_counted v
    join token_events e on e.chain_id = $1 and e.height = v.height
    where v.height <= $2::bigint
      and not exists (
          select from rejected_events r
          where r.chain_id = $1 and r.projection = 'token_balances'
            and r.height = e.height and r.tx_index = e.tx_index and r.event_index = e.event_index)
),
moves as (
    select token, address, $3::bigint - 1 as height, amount
    from opening_balances
    where chain_id = $1 and $2::bigint is not null
    union all
    select token, from_address, height, -amount from taken where from_address is not null
    union all
    select token, to_address, height, amount from taken where to_address is not null
),
net as (
    select token, address, height, sum(amount) as delta
    from moves
    group by token, address, height
)
select token, address, height, delta, sum(delta) over w, lag(height) over w
from net
window w as (partition by token, address order by height)
