-- Events that a projection ($3) of a chain ($1) refused, against those that were refused when they were computed again.
with ours as (
    select height, tx_index, event_index, reason
    from rejected_events where chain_id = $1 and projection = $3
)
select 'rejected event' as kind, format('%s/%s/%s', height, tx_index, event_index) as key,
    coalesce(o.reason, 'taken') as ours, coalesce(t.reason, 'to be taken') as recomputed,
    count(*) over () as differences
from ours o
full join verify_refused t using (height, tx_index, event_index)
where o.reason is distinct from t.reason
order by height, tx_index, event_index
limit $2
