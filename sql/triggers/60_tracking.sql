-- Undo for any table. Each tracked table has an undo table with, for every block and key, the row as it was before
-- that block first touched it, or the fact that there was none. Statement triggers write it; one statement restores all
-- tables of a projection, any number of blocks at once.
--
-- Settings of a session carry what no trigger can be told otherwise. Those of a block end with its transaction.
--
--   ebbtide.…             set by                      read by                       means
--   projection            enter_block, restore        tracked_statement             whose block writes; empty: nobody's
--   tracking              enter_block, restore        triggers of tracked tables    on: undo is recorded; final: nothing will be
--                                                                                   undone; beside: 65_rebuild.sql; restoring
--   chain_id, height      enter_block                 triggers of tracked tables    the block
--   imaged                enter_block, triggers       triggers of tracked tables    tables that have an image of this block
--   statement             tracked_statement           tracked_statement             statements so far, in the order they begin
--   begun                 tracked_statement           fired_statement               the number of the one begun at each depth of
--                                                                                   triggers; negative once its own have fired
--   untracked_writes      enter_block                 leave_block                   rows written to other tables before
--   settled               leave_block, restore        enter_block                   constraints were made immediate before
--   around_NAME           surroundings                surroundings                  what it saw, for a second; the session's
--   write_tracked_tables  people                      tracked_statement,            on: this session writes them all the same
--                                                     refuse_stray
--   ledger                the processor's sessions,   refuse_stray                  on: it writes what follows from the chain
--                         functions that take it away
--   bulk                  the syncer                  is_switched                   it writes the block rows itself
--   catching_up           the syncer                  is_switched                   a vault is caught up
--   not_concerned         events_touched              blocks_rewritten              projections that do not follow from the change

-- A table's name as tracked_tables keeps it.
create or replace function relation_name(given regclass) returns text
language plpgsql stable set search_path = ebbtide, pg_temp set quote_all_identifiers = off as $$
begin
    return (select format('%I.%I', n.nspname, c.relname)
            from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = given);
end $$;

-- Whether a role may do all that the one that runs this may: it is that role, a member of it, or a superuser. Code of such
-- a role gains nothing by being run with our rights; any other's would take them over (docs/decisions/011). Behind
-- pg_database_owner stands the role that owns the database; 0 is everybody.
create or replace function is_trusted(role oid) returns boolean
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    if role = 'pg_database_owner'::regrole then
        role := (select d.datdba from pg_database d where d.datname = current_database());
    end if;
    if role = 0 then
        return not exists (select from pg_roles r where r.rolcanlogin and not is_trusted(r.oid));
    end if;
    return pg_has_role(role, current_user,
        case when current_setting('server_version_num')::int < 160000 then 'member' else 'usage, set' end);
end $$;

-- Code that hangs on a table and belongs to a role that is not trusted: functions of triggers, defaults, checks, generated
-- columns and indexes, and types. Null: there is none.
create or replace function code_of_others(given oid) returns text
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return (
        select format('%s of the role %s', o.what, o.owner::regrole)
        from (
            select format('the function %s', d.refobjid::regprocedure) as what, p.proowner as owner
            from pg_depend d join pg_proc p on p.oid = d.refobjid
            where d.refclassid = 'pg_proc'::regclass and (d.classid, d.objid) in (
                select 'pg_trigger'::regclass::oid, t.oid from pg_trigger t where t.tgrelid = given
                union all select 'pg_attrdef'::regclass, f.oid from pg_attrdef f where f.adrelid = given
                union all select 'pg_constraint'::regclass, k.oid from pg_constraint k where k.conrelid = given
                union all select 'pg_class'::regclass, i.indexrelid from pg_index i where i.indrelid = given)
            union all
            select format('the type %s', y.oid::regtype), y.typowner
            from pg_attribute a join pg_type y on y.oid = a.atttypid
            where a.attrelid = given and a.attnum > 0 and not a.attisdropped
        ) o
        where not is_trusted(o.owner)
        order by 1 limit 1);
end $$;

-- All that the triggers and the restore depend on, in words that survive a dump: columns, primary key, triggers (those of
-- foreign keys included, incoming ones too) and whether they fire, and what check_trackable refuses.
create or replace function table_shape(given oid) returns text
language plpgsql stable set search_path = ebbtide, pg_temp set quote_all_identifiers = off as $$
begin
    return
        (select string_agg(format('%s:%s:%s:%s:%s:%s%s', a.attnum, a.attname, a.atttypid::regtype, a.atttypmod,
                                  a.attcollation, a.attgenerated, a.attidentity), ' ' order by a.attnum)
         from pg_attribute a where a.attrelid = given and a.attnum > 0 and not a.attisdropped)
        || ' key ' || coalesce((select i.indkey::text || i.indimmediate from pg_index i
                                where i.indrelid = given and i.indisprimary), '-')
        || ' triggers ' || coalesce((select string_agg(format('%s/%s/%s/%s', t.tgfoid::regproc, p.proowner::regrole,
                                                              t.tgtype, t.tgenabled), ' '
                                                       order by t.tgfoid::regproc::text, t.tgtype, t.tgenabled)
                                     from pg_trigger t join pg_proc p on p.oid = t.tgfoid where t.tgrelid = given), '-')
        || (select format(' of %s %s %s rules %s heirs %s unique %s', c.relowner::regrole, c.relpersistence, c.relforcerowsecurity,
                exists (select from pg_rewrite r where r.ev_class = given),
                exists (select from pg_inherits h where h.inhparent = given or h.inhrelid = given),
                (select string_agg(i.indimmediate::text, '' order by i.indimmediate) from pg_index i
                 where i.indrelid = given and i.indisunique))
            from pg_class c where c.oid = given);
end $$;

create or replace function refuse_tracking(given regclass, reason text, remedy text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
begin
    raise exception 'table % cannot be made reorg-safe: %', relation_name(given), reason
        using errcode = 'feature_not_supported', constraint = 'table_cannot_be_tracked', hint = remedy;
end $$;

-- Refuses at once what could not be restored exactly.
create or replace function check_trackable(given regclass, own regclass[], name text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    c pg_class%rowtype;
    found_text text;
begin
    select * into c from pg_class where oid = given;
    if c.relnamespace in ('ebbtide'::regnamespace, 'pg_catalog'::regnamespace) and not exists (
        select from projections p
        where p.name = check_trackable.name and p.apply is null and relation_name(given) = any (p.tables)) then
        perform refuse_tracking(given, 'it is one of Ebbtide''s or Postgres'' own', 'Make a table in a schema of yours.');
    end if;
    if c.relkind <> 'r' or c.relispartition
        or exists (select from pg_inherits i where i.inhparent = given or i.inhrelid = given) then
        perform refuse_tracking(given, 'it is no plain table (a view, a partition, a foreign table or one that others inherit from)',
            'Use a plain table.');
    end if;
    if c.relpersistence <> 'p' then
        perform refuse_tracking(given, 'it is temporary or unlogged, so a crash would empty it', 'alter table ... set logged');
    end if;
    if not (is_trusted(c.relowner) and pg_has_role(current_user, c.relowner, 'usage')) then
        perform refuse_tracking(given, format('its owner is %s, and Ebbtide runs as %s', c.relowner::regrole, current_user),
            format('alter table ... owner to %s', current_user));
    end if;
    found_text := code_of_others(given);
    if found_text is not null then
        perform refuse_tracking(given, format('its rows go through %s, which would run with the rights of %s', found_text, current_user),
            format('Make %s its owner, or take it off the table.', current_user));
    end if;
    if c.relforcerowsecurity then
        perform refuse_tracking(given, 'row security is forced on its owner', 'alter table ... no force row level security');
    end if;
    if exists (select from pg_rewrite r where r.ev_class = given) then
        perform refuse_tracking(given, 'it has rules', 'Drop them; a trigger can do the same.');
    end if;
    if not exists (select from pg_index i where i.indrelid = given and i.indisprimary) then
        perform refuse_tracking(given, 'it has no primary key', 'alter table ... add primary key (...)');
    end if;
    select format('%s of %s', k.conname, relation_name(k.conrelid)) into found_text
    from pg_constraint k
    where k.contype = 'f' and k.confrelid = given and k.conrelid <> all (own) and k.conparentid = 0
    order by k.conname limit 1;
    if found_text is not null then
        perform refuse_tracking(given, format('the foreign key %s points at it, and that table is not tracked', found_text),
            'Name that table in `tables` as well, or drop the constraint.');
    end if;
    select format('%s to %s', k.conname, relation_name(k.confrelid)) into found_text
    from pg_constraint k
    where k.contype = 'f' and k.conrelid = given and k.confrelid <> all (own)
      and (k.confdeltype not in ('a', 'r') or k.confupdtype not in ('a', 'r'))
    order by k.conname limit 1;
    if found_text is not null then
        perform refuse_tracking(given, format('the foreign key %s would cascade into it from a table that is not tracked', found_text),
            'Name that table in `tables` as well, or make the key `no action`.');
    end if;
    -- Rows that cascades hang on are restored in place: one at a time, without leaving the table.
    if keeps_rows(given) then
        select k.conname into found_text from pg_constraint k
        where k.conrelid = given and (k.contype in ('u', 'x') and not k.condeferrable or k.contype = 'p' and k.condeferrable)
        order by k.conname limit 1;
        if found_text is not null then
            perform refuse_tracking(given, format('foreign keys cascade from it, and %s would stand in the way while rows are restored',
                found_text), 'Make a unique constraint deferrable (a primary key not), or the foreign keys `no action`.');
        end if;
        select c2.relname into found_text
        from pg_index i join pg_class c2 on c2.oid = i.indexrelid
        where i.indrelid = given and i.indisunique
          and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.conrelid = given)
        order by c2.relname limit 1;
        if found_text is not null then
            perform refuse_tracking(given, format('foreign keys cascade from it, and the unique index %s would stand in the way while rows are restored',
                found_text), 'Make it a deferrable unique constraint, or the foreign keys `no action`.');
        end if;
        select a.attname into found_text from pg_attribute a join pg_index i on i.indrelid = given and i.indisprimary
        where a.attrelid = given and a.attidentity = 'a' and a.attnum <> all (i.indkey::smallint[]);
        if found_text is not null then
            perform refuse_tracking(given, format('foreign keys cascade from it, and the identity column %s cannot be updated', found_text),
                'Make it `generated by default as identity`, or the foreign keys `no action`.');
        end if;
    end if;
end $$;

-- Whether deleting a row and putting it back would cascade, or be forbidden by `restrict`.
create or replace function keeps_rows(given oid) returns boolean
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return exists (select from pg_constraint k
                   where k.contype = 'f' and k.confrelid = given and (k.confdeltype <> 'a' or k.confupdtype <> 'a'));
end $$;

-- The condition that two rows have one key, by the operators of the primary key: another type's may be in a schema that is
-- not in sight here, and a looser one would be taken in silence. A side that ends in a dot has the table's columns, one
-- that ends in a letter those of the undo. Null: the operators are not all in `only_in`.
create or replace function keys_equal(given oid, one text, other text, only_in name default null) returns text
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return (
        select case when bool_and(coalesce(n.nspname = only_in, true)) then string_agg(
            format('%s%s operator(%I.%s) %s%s', one, case when one ~ '\.$' then quote_ident(a.attname) else a.attnum::text end,
                n.nspname, o.oprname, other, case when other ~ '\.$' then quote_ident(a.attname) else a.attnum::text end),
            ' and ' order by u.place) end
        from pg_index i
        cross join unnest(i.indkey::smallint[], i.indclass::oid[]) with ordinality u (attnum, opclass, place)
        join pg_attribute a on a.attrelid = given and a.attnum = u.attnum
        join pg_opclass c on c.oid = u.opclass
        join pg_amop m on m.amopfamily = c.opcfamily and m.amopstrategy = 3
            and m.amoplefttype = c.opcintype and m.amoprighttype = c.opcintype
        join pg_operator o on o.oid = m.amopopr
        join pg_namespace n on n.oid = o.oprnamespace
        where i.indrelid = given and i.indisprimary);
end $$;

-- Before a statement on a tracked table: only the projection's own blocks write it.
create or replace function tracked_statement() returns trigger
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    at_depth integer := pg_trigger_depth();
    begun bigint[];
    in_statement bigint;
begin
    if current_setting('ebbtide.projection', true) is distinct from tg_argv[0] then
        if current_setting('ebbtide.write_tracked_tables', true) = 'on'
            or current_setting('session_replication_role') = 'replica' then
            return null;
        end if;
        raise exception 'table %.% belongs to the projection %: only its blocks write it', tg_table_schema, tg_table_name,
            tg_argv[0]
            using errcode = 'object_not_in_prerequisite_state', constraint = 'tracked_tables_are_written_by_their_projection',
                  hint = 'set ebbtide.write_tracked_tables = on lets this session write it all the same; no reorganisation takes that back.';
    end if;
    if current_setting('ebbtide.tracking', true) = 'beside' then
        raise exception 'table %.% is being built beside: a block writes it by its name alone', tg_table_schema, tg_table_name
            using errcode = 'object_not_in_prerequisite_state', constraint = 'tables_built_beside_go_by_their_short_names';
    end if;
    begun := coalesce(nullif(current_setting('ebbtide.begun', true), ''), '{}');
    -- Several tables written by one query are one statement. What is deeper is over. What is less deep and not there is
    -- a statement on something else, as a view is.
    if coalesce(begun[at_depth], 0) <= 0 then
        in_statement := coalesce(nullif(current_setting('ebbtide.statement', true), ''), '0')::bigint + 1;
        begun := begun[1:at_depth - 1] || array_fill(0::bigint, array[greatest(at_depth - 1 - cardinality(begun), 0)]) || in_statement;
        perform set_config('ebbtide.statement', in_statement::text, true), set_config('ebbtide.begun', begun::text, true);
    end if;
    return null;
end $$;

-- The number of the statement whose triggers fire at this depth. Cascades of foreign keys belong to the one that set them off.
create or replace function fired_statement(at_depth integer) returns bigint
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    begun bigint[] := current_setting('ebbtide.begun');
    in_statement bigint := abs(begun[at_depth]);
begin
    if begun[at_depth] > 0 or cardinality(begun) > at_depth then
        begun[at_depth] := -in_statement;
        perform set_config('ebbtide.begun', (begun[1:at_depth])::text, true);
    end if;
    return in_statement;
end $$;

create or replace function refuse_tracked_truncate() returns trigger
language plpgsql set search_path = ebbtide, pg_temp as $$
begin
    raise exception 'truncate of %.% is refused: it could not be undone', tg_table_schema, tg_table_name
        using errcode = 'feature_not_supported', constraint = 'tracked_tables_are_not_truncated', hint = 'Use delete.';
end $$;

-- The type below all domains: an image of no row is null, which a domain may refuse.
create or replace function plain_type(given oid, typmod integer) returns text
language plpgsql stable set search_path = ebbtide, pg_temp as $$
declare d record;
begin
    loop
        select y.typbasetype, y.typtypmod into d from pg_type y where y.oid = given and y.typtype = 'd';
        if not found then
            return format_type(given, typmod);
        end if;
        given := d.typbasetype;
        typmod := d.typtypmod;
    end loop;
end $$;

-- Makes the undo table and the triggers of a tracked table, or fits them to its shape of today.
create or replace function fit_tracking(tracked bigint) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    t ebbtide.tracked_tables%rowtype;
    rel regclass;
    own regclass[];
    undo text := format('ebbtide.%I', 'undo_' || tracked);
    fn text := format('ebbtide.%I', 'track_' || tracked);
    a record;
    held boolean;
    exists_now boolean := to_regclass(undo) is not null;
    now_columns jsonb := '{}';
    now_keys smallint[];
    all_names text;
    old_list text;
    new_keys text;
    key_list text;
    undo_list text;
    set_list text;
    old_images text;
    new_images text;
    new_conflict text;
    old_conflict text;
    old_ones text;
    old_keys text;
    moves boolean;
    first_one text;
begin
    select * into t from ebbtide.tracked_tables where id = tracked;
    rel := to_regclass(t.relation);
    if rel is null then
        raise exception 'table % of the projection % is gone', t.relation, t.projection
            using errcode = 'undefined_table', constraint = 'tracked_table_is_gone',
                  hint = 'Bring it back under its name, or drop_projection and create_projection again.';
    end if;
    -- Undo of other rows would be put into it, and rows of blocks before would be missing.
    if t.columns <> '{}' and not exists (
        select from pg_trigger g where g.tgrelid = rel and g.tgfoid = 'ebbtide.tracked_statement'::regproc) then
        raise exception 'table % of the projection % is not the one that its blocks wrote: it lacks its triggers', t.relation,
            t.projection
            using errcode = 'object_not_in_prerequisite_state', constraint = 'tracked_table_is_another',
                  hint = format('Bring the old one back under its name; or select ebbtide.forget_undo(%L) fills this one from the start.',
                      t.projection);
    end if;
    select array_agg(to_regclass(o.relation)) into own from ebbtide.tracked_tables o where o.projection = t.projection;
    perform check_trackable(rel, own, t.projection);
    select array(select k from unnest(i.indkey) with ordinality u(k, place) where place <= i.indnkeyatts order by place)
    into now_keys from pg_index i where i.indrelid = rel and i.indisprimary;
    if exists_now then
        execute format('select exists (select from %s)', undo) into held;
        if held and now_keys is distinct from t.keys then
            raise exception 'the primary key of % changed, and % has undo for the old one', t.relation, t.projection
                using errcode = 'object_not_in_prerequisite_state', constraint = 'undo_fits_the_table',
                      hint = format('select ebbtide.forget_undo(%L) drops the undo and has the projection built again.', t.projection);
        end if;
        if not held then
            execute format('drop table %s', undo);
            exists_now := false;
        end if;
    end if;
    for a in
        select att.attnum, att.attname, att.attgenerated,
            plain_type(att.atttypid, att.atttypmod) as type,
            case when att.attcollation <> 0 and att.attcollation <> ty.typcollation
                 then (select format(' collate %I.%I', n.nspname, co.collname) from pg_collation co
                       join pg_namespace n on n.oid = co.collnamespace where co.oid = att.attcollation) else '' end as collation,
            -- What the rows got that were there when the column came, where that is known.
            case when att.atthasmissing then format('(%L::%s[])[1]', att.attmissingval::text, format_type(att.atttypid, att.atttypmod))
                 when att.attidentity <> '' then format('nextval(%L)', pg_get_serial_sequence(t.relation, att.attname))
                 else coalesce(pg_get_expr(d.adbin, d.adrelid), ty.typdefault) end as default_expression
        from pg_attribute att
        join pg_type ty on ty.oid = att.atttypid
        left join pg_attrdef d on d.adrelid = att.attrelid and d.adnum = att.attnum
        where att.attrelid = rel and att.attnum > 0 and not att.attisdropped
        order by att.attnum
    loop
        -- Generated columns come back by themselves; but one in the key is needed to find the row.
        continue when a.attgenerated <> '' and a.attnum <> all (now_keys);
        now_columns := now_columns || jsonb_build_object(a.attnum, jsonb_build_array(a.attname, a.type || a.collation,
            case when a.attgenerated <> '' then 'generated' else '' end));
        continue when not exists_now;
        if not t.columns ? a.attnum::text then
            -- Rows got the default when the column came, and nobody but the projection has written since. Rows that are
            -- not there now would have got it too.
            execute format('alter table %s add column %I %s%s', undo, 'c' || a.attnum, a.type || a.collation,
                coalesce(' default ' || a.default_expression, ''));
            execute format('alter table %s alter column %I drop default', undo, 'c' || a.attnum);
            execute format('update %s u set %I = r.%I from %s r where u.existed and %s', undo, 'c' || a.attnum, a.attname, t.relation,
                keys_equal(rel, 'r.', 'u.c'));
        elsif t.columns -> a.attnum::text ->> 1 <> a.type || a.collation then
            raise exception 'column % of % was %, and % has undo of that type; now it is %', a.attname, t.relation,
                t.columns -> a.attnum::text ->> 1, t.projection, a.type || a.collation
                using errcode = 'object_not_in_prerequisite_state', constraint = 'undo_fits_the_table',
                      hint = format('select ebbtide.forget_undo(%L) drops the undo and has the projection built again.', t.projection);
        end if;
    end loop;
    if exists_now then
        for a in select key from jsonb_object_keys(t.columns) key where not now_columns ? key loop
            execute format('alter table %s drop column %I', undo, 'c' || a.key);
        end loop;
    end if;
    if not exists_now then
        execute format('create table %s (chain_id bigint not null, height bigint not null, existed boolean not null,
            statement bigint not null, %s,
            primary key (chain_id, height, %s)) with (fillfactor = 100, autovacuum_vacuum_scale_factor = 0.1)',
            undo,
            (select string_agg(format('%I %s', 'c' || key, value ->> 1), ', ' order by key::int) from jsonb_each(now_columns)),
            (select string_agg(format('%I', 'c' || k), ', ' order by o) from unnest(now_keys) with ordinality u(k, o)));
    end if;
    select string_agg(format('o.%I', value ->> 0), ', ' order by key::int),
           string_agg(format('%I', 'c' || key), ', ' order by key::int),
           string_agg(format('%1$I = excluded.%1$I', 'c' || key), ', ' order by key::int)
    into old_list, undo_list, set_list from jsonb_each(now_columns);
    select string_agg(format('n.%I', now_columns -> k::text ->> 0), ', ' order by o),
           string_agg(format('o.%I', now_columns -> k::text ->> 0), ', ' order by o),
           string_agg(format('%I', 'c' || k), ', ' order by o)
    into new_keys, old_keys, key_list from unnest(now_keys) with ordinality u(k, o);
    -- Images arrive in the order in which statements end. Of two for one key in one block the older one counts: that of
    -- the statement that began first, since one nested in a trigger ends before the one that set it off. Within a
    -- statement: cascades may update a row and then delete it; of a row deleted and put back, the deletion counts.
    -- Of a row that a cascade moved to another key, a deletion under the new key is the cascade's.
    moves := exists (select from pg_constraint k where k.contype = 'f' and k.conrelid = rel
                     and k.confupdtype not in ('a', 'r') and k.conkey && now_keys);
    old_images := format($q$
    insert into %1$s as u (chain_id, height, existed, statement, %2$s)
    select at_chain, at_height, true, 4 * in_statement + case tg_op when 'UPDATE' then 0 else 2 end, %3$s from $q$,
        undo, undo_list, old_list);
    old_conflict := format($q$
    on conflict (chain_id, height, %s) do update
    set existed = true, statement = excluded.statement, %s
    where u.statement > excluded.statement;$q$, key_list, set_list);
    -- Where foreign keys cascade into the table, one statement can change a row twice, and both versions come in one
    -- table of old rows, in order. The second one is none that stood before.
    old_ones := 'old_rows o';
    if exists (select from pg_constraint k where k.contype = 'f' and k.conrelid = rel
               and (k.confdeltype not in ('a', 'r') or k.confupdtype not in ('a', 'r'))) then
        old_ones := format('(select o.* from (select *, row_number() over () as ebbtide_row from old_rows) o
            where not exists (select from (select *, row_number() over () as ebbtide_row from new_rows) n
                              where n.ebbtide_row < o.ebbtide_row and %s)) o', keys_equal(rel, 'n.', 'o.'));
    end if;
    new_images := format($q$
    insert into %1$s as u (chain_id, height, existed, statement, %2$s)
    select %4$s at_chain, at_height, false, 4 * in_statement + %5$s, %3$s from new_rows n$q$, undo, key_list, new_keys,
        case when old_ones = 'old_rows o' then '' else 'distinct' end,
        case when moves then $q$case tg_op when 'UPDATE' then 1 else 3 end$q$ else '3' end);
    new_conflict := format($q$
    on conflict (chain_id, height, %s) do update
    set existed = false, statement = excluded.statement
    where u.statement > excluded.statement;$q$, key_list);
    -- The first statement of a block on the table finds no image there, and its rows have one key each: no conflict has to
    -- be looked for, which would be a third of the cost.
    first_one := format($q$
    if position(',%s,' in imaged) = 0 then
        perform set_config('ebbtide.imaged', imaged || ',%1$s,', true);%%s;
    else%%s
    end if;$q$, tracked);
    for a in select * from (values ('old', '{old_rows}'::text[], case when old_ones = 'old_rows o'
                                        then format(first_one, old_images || old_ones, old_images || old_ones || old_conflict)
                                        else old_images || 'old_rows o' || old_conflict end),
                                   ('new', '{new_rows}', case when old_ones = 'old_rows o'
                                        then format(first_one, new_images, new_images || new_conflict)
                                        else new_images || new_conflict end),
                                   -- An update that leaves its keys alone makes no new ones.
                                   ('both', '{old_rows,new_rows}', case when old_ones = 'old_rows o'
                                        then format(first_one, old_images || old_ones, old_images || old_ones || old_conflict)
                                        else old_images || old_ones || old_conflict end || new_images || format(
                                       ' where %s', case
                                           -- Hashed, whatever the planner was told about joins; but by the operators in sight.
                                           when keys_equal(rel, 'n.', 'o.', 'pg_catalog') is not null
                                           then format('(%s) not in (select %s from %s)', new_keys, old_keys, old_ones)
                                           else format('not exists (select from %s where %s)', old_ones,
                                                       keys_equal(rel, 'n.', 'o.')) end) || new_conflict)
                           ) v (suffix, given, body) loop
        execute format($f$
create or replace function %1$s_%2$s() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $body$
#variable_conflict use_variable
declare
    tracking text := current_setting('ebbtide.tracking', true);
    imaged text := current_setting('ebbtide.imaged', true);
    at_chain bigint;
    at_height bigint;
    in_statement bigint;
begin
    if tracking is null or tracking not in ('on', 'final') then
        return null;
    end if;
    at_chain := current_setting('ebbtide.chain_id');%3$s
    if tracking = 'final' then
        return null;
    end if;
    at_height := current_setting('ebbtide.height');
    in_statement := fired_statement(pg_trigger_depth());%4$s
    return null;
end $body$;
$f$, fn, a.suffix, case when t.by_chain then (select string_agg(format($q$
    if exists (select from %s r where r.chain_id <> at_chain) then
        raise exception 'chain_id of a row of %% is not %%, the chain of the block', %L, at_chain
            using errcode = 'integrity_constraint_violation', constraint = 'rows_are_of_the_chain_of_their_block';
    end if;$q$, g, t.relation), '') from unnest(a.given) g) else '' end, a.body);
        execute format('revoke all on function %s_%s() from public', fn, a.suffix);
    end loop;
    execute format('create or replace trigger ebbtide_statement before insert or update or delete on %s
        for each statement execute function ebbtide.tracked_statement(%L)', t.relation, t.projection);
    execute format('create or replace trigger ebbtide_truncate before truncate on %s
        for each statement execute function ebbtide.refuse_tracked_truncate()', t.relation);
    execute format('create or replace trigger ebbtide_insert after insert on %s referencing new table as new_rows
        for each statement execute function %s_new()', t.relation, fn);
    execute format('create or replace trigger ebbtide_update after update on %s
        referencing old table as old_rows new table as new_rows for each statement execute function %s_both()', t.relation, fn);
    execute format('create or replace trigger ebbtide_delete after delete on %s referencing old table as old_rows
        for each statement execute function %s_old()', t.relation, fn);
    -- A person who disabled them did not mean to lose the undo; nor did a function that sets session_replication_role.
    execute format('alter table %s enable always trigger ebbtide_statement, enable trigger ebbtide_truncate,
        enable always trigger ebbtide_insert, enable always trigger ebbtide_update, enable always trigger ebbtide_delete',
        t.relation);
    update ebbtide.tracked_tables set columns = now_columns, keys = now_keys, shape = table_shape(rel) where id = tracked;
end $$;

-- Fits what does not fit any more; cheap where all does. From here to the end of the transaction nobody alters the tables:
-- a column that came after the look and before the block wrote would be missing in its undo.
drop function if exists check_shapes(text);
create or replace function check_shapes(name text, lock_mode text default 'row exclusive') returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare t record;
begin
    for t in select k.id, k.relation, k.shape from tracked_tables k where k.projection = name order by k.id loop
        if to_regclass(t.relation) is not null then
            execute format('lock table %s in %s mode', t.relation, lock_mode);
        end if;
        if coalesce(to_regclass(t.relation), 0) = 0 or table_shape(to_regclass(t.relation)) <> t.shape then
            perform fit_tracking(t.id);
        end if;
    end loop;
end $$;

-- Restores all tables of a projection to what they were once the block at this height was applied, in one statement, so
-- that foreign keys are looked at when everything is back. Returns how many rows were put back or taken away.
create or replace function restore_tables(name text, chain bigint, above bigint) returns bigint
language plpgsql set search_path = ebbtide, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off as $$
declare
    t record;
    sql text := '';
    counts text := '';
    dels text := '';
    restored bigint;
    in_place boolean;
    keys text;
    resting jsonb;
begin
    perform check_shapes(name, lock_to_restore(name));
    perform set_config('ebbtide.projection', name, true), set_config('ebbtide.tracking', 'restoring', true);
    resting := rest_user_triggers(name);
    set constraints all deferred;
    for t in select k.*, to_regclass(k.relation) as rel from tracked_tables k where k.projection = name order by k.id loop
        in_place := keeps_rows(t.rel);
        keys := keys_equal(t.rel, 'r.', 'f.c');
        sql := sql || format($q$%s
gone_%s as (delete from ebbtide.undo_%s where chain_id = $1 and height > $2 returning *),
first_%2$s as materialized (select distinct on (%4$s) * from gone_%2$s order by %4$s, height),
deleted_%2$s as (delete from %5$s r using first_%2$s f where %6$s %7$s returning 1)$q$,
            case when sql = '' then 'with' else ',' end, t.id, t.id,
            (select string_agg(format('%I', 'c' || k), ', ' order by o) from unnest(t.keys) with ordinality u(k, o)),
            t.relation, keys, case when in_place then 'and not f.existed' else '' end);
        counts := counts || case when counts = '' then '' else ' + ' end || format('(select count(*) from first_%s)', t.id);
        dels := dels || case when dels = '' then '' else ' + ' end || format('(select count(*) from deleted_%s)', t.id);
    end loop;
    if sql = '' then
        return 0;
    end if;
    for t in select k.*, to_regclass(k.relation) as rel from tracked_tables k where k.projection = name order by k.id loop
        in_place := keeps_rows(t.rel);
        sql := sql || format($q$,
restored_%s as (insert into %s (%s) overriding system value select %s from first_%s f where f.existed and %s >= 0 %s returning 1)$q$,
            t.id, t.relation,
            (select string_agg(format('%I', value ->> 0), ', ' order by key::int) from jsonb_each(t.columns) where value ->> 2 = ''),
            (select string_agg(format('f.%I', 'c' || key), ', ' order by key::int) from jsonb_each(t.columns) where value ->> 2 = ''),
            t.id, dels,
            case when in_place then format('on conflict (%s) do update set %s',
                (select string_agg(format('%I', t.columns -> k::text ->> 0), ', ' order by o)
                 from unnest(t.keys) with ordinality u(k, o)),
                (select string_agg(format('%1$I = excluded.%1$I', value ->> 0), ', ' order by key::int)
                 from jsonb_each(t.columns)
                 where value ->> 2 = '' and not exists (select from pg_attribute a where a.attrelid = t.rel
                     and a.attnum = key::int and a.attidentity = 'a'))) else '' end);
        dels := dels || format(' + (select count(*) from restored_%s)', t.id);
    end loop;
    sql := sql || ' select ' || counts || ' + 0 * (' || dels || ')';
    execute sql into restored using chain, above;
    set constraints all immediate;
    perform set_config('ebbtide.settled', 'on', true);
    perform wake_user_triggers(resting);
    perform set_config('ebbtide.projection', '', true), set_config('ebbtide.tracking', '', true);
    return restored;
end $$;

-- The user's own triggers rest while rows are restored: what they would do was done when the rows were written. Which
-- way each was enabled is kept for the end of it.
drop function if exists rest_user_triggers(text);
create or replace function rest_user_triggers(name text) returns jsonb
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    g record;
    resting jsonb := '[]';
begin
    for g in
        select k.relation, t.tgname, t.tgenabled
        from tracked_tables k
        join pg_trigger t on t.tgrelid = to_regclass(k.relation)
        where k.projection = name and not t.tgisinternal and t.tgenabled <> 'D' and t.tgfoid not in (
            select p.oid from pg_proc p where p.pronamespace = 'ebbtide'::regnamespace)
        order by k.id, t.tgname
    loop
        resting := resting || jsonb_build_array(jsonb_build_array(g.relation, g.tgname, g.tgenabled));
        execute format('alter table %s disable trigger %I', g.relation, g.tgname);
    end loop;
    return resting;
end $$;

-- At once the lock that resting triggers takes: two chains that went up to it from a weaker one would wait for each other.
create or replace function lock_to_restore(name text) returns text
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return case when exists (
        select from tracked_tables k
        join pg_trigger t on t.tgrelid = to_regclass(k.relation)
        join pg_proc p on p.oid = t.tgfoid
        where k.projection = name and not t.tgisinternal and p.pronamespace <> 'ebbtide'::regnamespace)
        then 'share row exclusive' else 'row exclusive' end;
end $$;

drop function if exists wake_user_triggers();
create or replace function wake_user_triggers(resting jsonb) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare g record;
begin
    for g in select r ->> 0 as relation, r ->> 1 as tgname, r ->> 2 as enabled
             from jsonb_array_elements(resting) r loop
        execute format('alter table %s enable %s trigger %I', g.relation,
            case g.enabled when 'R' then 'replica' when 'A' then 'always' else '' end, g.tgname);
    end loop;
end $$;

-- Takes all rows of one chain out of a projection's tables, and their undo with them.
create or replace function empty_tables(name text, chain bigint) returns bigint
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    t record;
    sql text := '';
    counts text := '';
    emptied bigint;
    resting jsonb;
begin
    for t in select k.* from tracked_tables k where k.projection = name order by k.id loop
        if to_regclass(format('ebbtide.undo_%s', t.id)) is not null then
            execute format('delete from undo_%s where chain_id = $1', t.id) using chain;
        end if;
        sql := sql || format('%s deleted_%s as (delete from %s %s returning 1)', case when sql = '' then 'with' else ',' end,
            t.id, t.relation, case when t.by_chain then 'where chain_id = $1' else '' end);
        counts := counts || format(' + (select count(*) from deleted_%s)', t.id);
    end loop;
    perform check_shapes(name, lock_to_restore(name));
    if sql = '' then
        return 0;
    end if;
    perform set_config('ebbtide.projection', name, true), set_config('ebbtide.tracking', 'restoring', true);
    resting := rest_user_triggers(name);
    execute sql || ' select 0' || counts into emptied using chain;
    set constraints all immediate;
    perform set_config('ebbtide.settled', 'on', true);
    perform wake_user_triggers(resting);
    perform set_config('ebbtide.projection', '', true), set_config('ebbtide.tracking', '', true);
    return emptied;
end $$;
