-- The next stored blocks. Rows are counted only for blocks that announced how many they have.
select b.height, b.hash, b.parent_hash, b.revision,
    case when b.event_count is null then true
         else b.event_count = (select count(*) from token_events t where t.chain_id = b.chain_id and t.height = b.height)
                            + (select count(*) from events e where e.chain_id = b.chain_id and e.height = b.height)
    end as complete
from blocks b
where b.chain_id = $1 and b.height >= $2 and b.height <= $3
order by b.height
limit $4
