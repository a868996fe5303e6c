-- What of the schema `ebbtide` is in the hands of a role that cannot do all that this one can: its code would run with our
-- rights. The same question as is_trusted asks, which may not be there yet, or may be theirs.
select o.what, case o.role when 0 then 'every role' else 'the role ' || o.role::regrole::text end as role
from (
    select 0 as place, 'the schema' as what, n.nspowner as role from pg_namespace n where n.nspname = 'ebbtide'
    union all
    select 1, 'the right to create in the schema', g.grantee
    from pg_namespace n, aclexplode(n.nspacl) g where n.nspname = 'ebbtide' and g.privilege_type = 'CREATE'
    union all
    select 2, 'the function ' || p.proname, p.proowner from pg_proc p where p.pronamespace = to_regnamespace('ebbtide')
    union all
    select 3, 'the relation ' || c.relname, c.relowner from pg_class c where c.relnamespace = to_regnamespace('ebbtide')
    union all
    select 4, 'the operator ' || o.oprname, o.oprowner from pg_operator o where o.oprnamespace = to_regnamespace('ebbtide')
    union all
    select 5, 'the type ' || y.typname, y.typowner from pg_type y where y.typnamespace = to_regnamespace('ebbtide')
) o
where o.role = 0 or not pg_has_role(o.role, current_user,
    case when current_setting('server_version_num')::int < 160000 then 'member' else 'usage, set' end)
order by o.place, o.what
limit 1
