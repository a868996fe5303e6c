-- What counts: the run of blocks from the start $2 in which each names its predecessor's hash, up to the first break.
-- A missing height is an empty block up to complete_to ($3), and the parent named after it is the source's word. A
-- block that announced more or fewer events than are stored does not count.
insert into verify_counted (height, hash, revision)
select height, hash, revision
from (
    select height, hash, revision, bool_or(breaks) over (order by height) as broken
    from (
        select height, hash, revision,
            case when height = coalesce(below + 1, $2) then below_hash <> parent_hash
                 else not coalesce(height - 1 <= $3, false)
            end is true
            or event_count is not null and event_count <>
                (select count(*) from token_events t where t.chain_id = $1 and t.height = linked.height)
                + (select count(*) from events e where e.chain_id = $1 and e.height = linked.height) as breaks
        from (
            select b.height, b.hash, b.parent_hash, b.revision, b.event_count,
                lag(b.height) over w as below, lag(b.hash) over w as below_hash
            from blocks b
            where b.chain_id = $1 and b.height >= $2
            window w as (order by b.height)
        ) linked
    ) judged
) run
where not broken
