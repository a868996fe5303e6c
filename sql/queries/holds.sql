-- Who holds what our sessions wait for, and who keeps everybody from a table of ours: read from the catalog alone, since any
-- table may be the one that is locked. Of other roles Postgres shows no more than who they are.
with held as materialized (
    select unnest(pg_blocking_pids(a.pid)) as pid, l.relation, format('(%s,%s)', l.page, l.tuple) as place, l.tuple is not null as is_row
    from pg_stat_activity a
    -- Who waits for the end of a transaction that changed a row has the turn at that row meanwhile.
    left join lateral (
        select l.relation, l.page, l.tuple
        from pg_locks l
        where l.pid = a.pid and l.relation is not null and (not l.granted or l.locktype = 'tuple')
        order by l.granted
        limit 1
    ) l on true
    where a.datname = current_database() and a.wait_event_type = 'Lock' and a.application_name like 'ebbtide%'
      and a.pid <> pg_backend_pid()
    union all
    select l.pid, l.relation, null, false
    from pg_locks l
    join pg_class c on c.oid = l.relation and c.relnamespace = 'ebbtide'::regnamespace
    join pg_database d on d.oid = l.database and d.datname = current_database()
    where l.granted and l.mode in ('AccessExclusiveLock', 'ExclusiveLock') and l.pid <> pg_backend_pid()
)
select distinct on (b.pid, h.relation, h.place) b.pid,
    -- A standby holds what a transaction of its primary holds.
    case when b.backend_type = 'startup' then 'replay of a transaction of the primary'
        else concat_ws(', ', b.usename, nullif(b.application_name, '')) end as who,
    b.state as does, extract(epoch from clock_timestamp() - b.xact_start)::float8 as open_seconds,
    case when h.is_row then 'a row of ' else '' end || h.relation::regclass::text as what,
    case when c.oid is not null then format('%I.%I', n.nspname, c.relname) end as relation, case when h.is_row then h.place end as place
from held h
join pg_stat_activity b on b.pid = h.pid
left join pg_class c on c.oid = h.relation
left join pg_namespace n on n.oid = c.relnamespace
-- One that waits itself is not the one to be seen to.
where b.wait_event_type is distinct from 'Lock'
order by b.pid, h.relation, h.place
