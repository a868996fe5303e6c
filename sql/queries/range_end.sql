-- The height of the event number $4 + 1 from height $2 on, of one kind or the other, if it is at most $3: a run of blocks that
-- ends below it has at most $4 of each.
select least(
    (select height from events where chain_id = $1 and height between $2 and $3
     order by height, tx_index, event_index offset $4 limit 1),
    (select height from token_events where chain_id = $1 and height between $2 and $3
     order by height, tx_index, event_index offset $4 limit 1)) as height
