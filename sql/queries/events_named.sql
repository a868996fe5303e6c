-- All stored events of some kinds ($2 emitters, null: any; $3 names), in chain order. Read once, when a syncer begins, along the
-- index of events by name; announcements of tokens have one of their own.
select distinct on (e.height, e.tx_index, e.event_index)
    e.height, e.tx_index, e.event_index, e.emitter, e.name, e.keys, e.data, e.attributes
from unnest($2::text[], $3::text[]) k (emitter, name)
cross join lateral (
    select e.*
    from events e
    where e.chain_id = $1 and e.name = k.name and e.name <> 'NewToken'
    union all
    select e.*
    from events e
    where e.chain_id = $1 and e.name = 'NewToken' and k.name = 'NewToken'
) e
where k.emitter is null or e.emitter = k.emitter
order by e.height, e.tx_index, e.event_index
