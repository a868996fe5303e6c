-- The session that holds an advisory lock ($1) of this database: whether that is the one that asks, and how much a COPY has
-- taken in that waits for its client.
select l.pid, l.pid = pg_backend_pid() as is_ours, a.usename::text as role, a.application_name,
    case when a.wait_event = 'ClientRead' then p.bytes_processed end as copied
from pg_locks l
left join pg_stat_activity a on a.pid = l.pid
left join pg_stat_progress_copy p on p.pid = l.pid
where l.locktype = 'advisory' and l.granted
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
  and l.classid::bigint = $1::bigint >> 32 and l.objid::bigint = $1::bigint & 4294967295 and l.objsubid = 1
