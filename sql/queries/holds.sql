-- Who holds what our sessions wait for, and who keeps everybody from a table of ours. Of other roles Postgres shows no more
-- than who they are.
select distinct on (b.pid) b.pid, concat_ws(', ', b.usename, nullif(b.application_name, '')) as who, b.state as does,
    extract(epoch from clock_timestamp() - b.xact_start)::float8 as open_seconds, held.what
from (
    select unnest(pg_blocking_pids(a.pid)) as pid,
        (select l.relation::regclass::text from pg_locks l where l.pid = a.pid and not l.granted limit 1) as what
    from pg_stat_activity a
    where a.datname = current_database() and a.wait_event_type = 'Lock' and a.application_name like 'ebbtide%'
      and a.pid <> pg_backend_pid()
    union all
    select l.pid, l.relation::regclass::text
    from pg_locks l
    join pg_class c on c.oid = l.relation and c.relnamespace = 'ebbtide'::regnamespace
    join pg_database d on d.oid = l.database and d.datname = current_database()
    where l.granted and l.mode in ('AccessExclusiveLock', 'ExclusiveLock') and l.pid <> pg_backend_pid()
) held
join pg_stat_activity b on b.pid = held.pid
-- One that waits itself is not the one to be seen to.
where b.wait_event_type is distinct from 'Lock'
order by b.pid, held.what
