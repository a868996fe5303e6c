-- All that the migrations and sql/triggers make, each with what it is: its definition, or a digest of a long one. Left out is
-- what belongs to projections (undo tables and their triggers: check_shapes looks after these), and what people may add.
with ours as (
    select c.oid, c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity
    from pg_class c
    where c.relnamespace = 'ebbtide'::regnamespace and c.relkind in ('r', 'v')
      and c.relname !~ '^undo_[0-9]+$' and c.relname <> 'refinery_schema_history'
)
select format('function %s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) as object,
    md5(pg_get_functiondef(p.oid)) as definition
from pg_proc p
where p.pronamespace = 'ebbtide'::regnamespace and p.prokind = 'f' and p.proname !~ '^track_[0-9]+_(old|new|both)$'
union all
-- Brackets and lines come out otherwise once a dump was loaded.
select format('view %s', o.relname), md5(translate(pg_get_viewdef(o.oid), E'() \n', ''))
from ours o where o.relkind = 'v'
union all
select format('table %s', o.relname), format('persistence %s, row security %s %s, %s rules', o.relpersistence, o.relrowsecurity,
    o.relforcerowsecurity, (select count(*) from pg_rewrite r where r.ev_class = o.oid))
from ours o where o.relkind = 'r'
union all
select format('column %s of %s', a.attname, o.relname), format('%s%s%s%s%s%s', format_type(a.atttypid, a.atttypmod),
    case when a.attcollation <> y.typcollation then (select ' collate ' || n.collname from pg_collation n where n.oid = a.attcollation) end,
    case when a.attnotnull then ' not null' end, ' default ' || pg_get_expr(d.adbin, d.adrelid),
    ' generated ' || nullif(a.attgenerated::text, ''), ' identity ' || nullif(a.attidentity::text, ''))
from ours o
join pg_attribute a on a.attrelid = o.oid and a.attnum > 0 and not a.attisdropped
join pg_type y on y.oid = a.atttypid
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where o.relkind = 'r'
union all
-- Foreign keys are triggers of Postgres' own, which a superuser can disable.
select format('constraint %s of %s', k.conname, o.relname), pg_get_constraintdef(k.oid) || case when exists (
    select from pg_trigger t where t.tgconstraint = k.oid and t.tgenabled <> 'O') then ' (disabled)' else '' end
from ours o join pg_constraint k on k.conrelid = o.oid
where k.contype in ('c', 'f', 'p', 'u', 'x')
union all
select format('index %s of %s', c.relname, o.relname),
    pg_get_indexdef(i.indexrelid) || case when i.indisvalid then '' else ' (invalid)' end
from ours o join pg_index i on i.indrelid = o.oid join pg_class c on c.oid = i.indexrelid
where not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.conrelid = o.oid)
union all
select format('trigger %s of %s', t.tgname, o.relname), pg_get_triggerdef(t.oid) || case t.tgenabled
    when 'O' then '' when 'D' then ' (disabled)' when 'R' then ' (in replicas alone)' else ' (always)' end
from ours o join pg_trigger t on t.tgrelid = o.oid join pg_proc p on p.oid = t.tgfoid
where not t.tgisinternal and t.tgname !~ '^ebbtide_'
