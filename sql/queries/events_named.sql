-- All stored events of some kinds ($2 emitters, null: any; $3 names), in chain order. Read once, when a syncer begins.
select e.height, e.tx_index, e.event_index, e.emitter, e.name, e.keys, e.data, e.attributes
from events e
where e.chain_id = $1
  and exists (select from unnest($2::text[], $3::text[]) as k (emitter, name)
              where k.name = e.name and coalesce(k.emitter, e.emitter) = e.emitter)
order by e.height, e.tx_index, e.event_index
