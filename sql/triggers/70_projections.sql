-- Projections: pieces of derived state that people add, each a function and the tables it writes.

-- What is compared to find that a function changed.
create or replace function apply_digest(apply text) returns text
language plpgsql stable set search_path = ebbtide, pg_temp set quote_all_identifiers = off as $$
begin
    return (select md5(pg_get_functiondef(p.oid)) from pg_proc p where p.oid = to_regprocedure(apply));
end $$;

-- Puts tables under a projection. Whatever cannot be made reorg-safe is refused, and nothing is left half done.
create or replace function track_tables(name text, tables regclass[], one_chain bigint) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
declare
    rel regclass;
    by_chain boolean;
    new_id bigint;
    ids bigint[] := '{}';
    taken text;
    filled boolean;
begin
    foreach rel in array tables loop
        select k.projection into taken from ebbtide.tracked_tables k where k.relation = relation_name(rel);
        if found then
            raise exception 'table % belongs to the projection % already', relation_name(rel), taken
                using errcode = 'unique_violation', constraint = 'a_table_belongs_to_one_projection',
                      hint = format('Write it from one function, or select ebbtide.drop_projection(%L).', taken);
        end if;
        perform check_trackable(rel, tables, name);
        -- Rows of a transaction that is not over yet would be in it all the same, and nobody would know.
        execute format('lock table %s in share row exclusive mode', relation_name(rel));
        execute format('select exists (select from %s)', relation_name(rel)) into filled;
        if filled then
            raise exception 'table % has rows already, that no block wrote', relation_name(rel)
                using errcode = 'object_not_in_prerequisite_state', constraint = 'projections_begin_with_empty_tables',
                      hint = 'Empty it; the projection fills it from the first block on.';
        end if;
        select exists (select from pg_index i
                       join pg_attribute a on a.attrelid = rel and a.attnum = any (i.indkey::smallint[])
                       where i.indrelid = rel and i.indisprimary and a.attname = 'chain_id' and a.atttypid = 'bigint'::regtype)
        into by_chain;
        if not by_chain and one_chain is null then
            raise exception 'the primary key of % has no column chain_id bigint, so it can hold one chain alone', relation_name(rel)
                using errcode = 'invalid_parameter_value', constraint = 'a_table_without_chain_id_is_one_chain_s',
                      hint = 'Say which one, chain => ''NAME'', or put chain_id first in the primary key.';
        end if;
        insert into ebbtide.tracked_tables (projection, relation, by_chain, columns, keys, shape)
        values (name, relation_name(rel), by_chain, '{}', '{}', '') returning id into new_id;
        ids := ids || new_id;
    end loop;
    foreach new_id in array ids loop
        perform fit_tracking(new_id);
    end loop;
end $$;

-- Code of others never runs with our rights: asked when a projection is made, and again before each block. Who owns the
-- schema of the function could put another one in its place, between the question and the call too.
create or replace function refuse_function_of_others(name text, function oid) returns void
language plpgsql stable set search_path = ebbtide, pg_temp as $$
declare f record;
begin
    select p.proowner::regrole as owner, n.nspowner::regrole as schema_owner, n.nspname, is_trusted(p.proowner) as trusted,
        format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as shown
    into f
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where p.oid = function and not (is_trusted(p.proowner) and is_trusted(n.nspowner));
    if not found then
        return;
    end if;
    if f.trusted then
        raise exception 'the projection % cannot run % with the rights of %: its schema belongs to %, who could put another function in its place',
            name, f.shown, current_user, f.schema_owner
            using errcode = 'insufficient_privilege', constraint = 'projections_run_trusted_code',
                  hint = format('alter schema %I owner to %I, or move the function into a schema of %2$s.', f.nspname, current_user);
    end if;
    raise exception 'the projection % cannot run % with the rights of %: its owner is %', name, f.shown, current_user, f.owner
        using errcode = 'insufficient_privilege', constraint = 'projections_run_trusted_code',
              hint = format('alter function %s owner to %I; or have Ebbtide run as %s, and make the projection as that role.', f.shown,
                  current_user, f.owner);
end $$;

-- The same for the schemas where a block's code finds what it names without one: a role that may create there could put a function
-- or an operator before the one that is meant. Asked once a second.
create or replace function refuse_schemas_of_others(name text) returns void
language plpgsql stable set search_path = ebbtide, pg_temp as $$
declare o record;
begin
    select n.nspname, coalesce(nullif(a.grantee, 0)::regrole::text, 'public') as role, a.grantee <> n.nspowner as granted into o
    from unnest(apply_schemas(name)) s (nspname)
    join pg_namespace n on n.nspname = s.nspname
    cross join lateral (
        select n.nspowner as grantee
        union all
        select g.grantee from aclexplode(n.nspacl) g where g.privilege_type = 'CREATE'
    ) a
    where not is_trusted(a.grantee)
    order by granted, 2 limit 1;
    if found then
        raise exception 'the projection % finds its code in the schema %, where % may create: it would run with the rights of %', name,
            o.nspname, case o.role when 'public' then 'every role' else 'the role ' || o.role end, current_user
            using errcode = 'insufficient_privilege', constraint = 'projections_run_trusted_code',
                  hint = case when o.granted then format('revoke create on schema %I from %s', o.nspname, o.role)
                         else format('alter schema %I owner to %I', o.nspname, current_user) end;
    end if;
end $$;

create or replace function create_projection(
    name text, apply regprocedure, tables regclass[], after text default null, chain text default null,
    start_height bigint default null
) returns void
language plpgsql set search_path = ebbtide, pg_temp set quote_all_identifiers = off set standard_conforming_strings = on as $$
#variable_conflict use_column
declare
    f pg_proc%rowtype;
    cid bigint;
    shown text;
begin
    if exists (select from projections p where p.name = create_projection.name) then
        raise exception 'there is a projection named % already', create_projection.name
            using errcode = 'unique_violation', constraint = 'projection_name_is_taken',
                  hint = format('select ebbtide.drop_projection(%L) removes it; its tables stay.', create_projection.name);
    end if;
    if create_projection.apply is null then
        raise exception 'the projection % needs a function', create_projection.name
            using errcode = 'null_value_not_allowed', constraint = 'a_projection_has_a_function';
    end if;
    select p.* into f from pg_proc p where p.oid = create_projection.apply;
    shown := format('%s.%I(%s)', f.pronamespace::regnamespace, f.proname, pg_get_function_identity_arguments(f.oid));
    if f.prokind <> 'f' or oidvectortypes(f.proargtypes) <> 'bigint, bigint' then
        raise exception '% is not a function of (chain_id bigint, height bigint)', shown
            using errcode = 'invalid_parameter_value', constraint = 'apply_takes_chain_id_and_height',
                  hint = 'Of several functions of one name, name the one: ''my_function(bigint, bigint)''.';
    end if;
    perform refuse_function_of_others(create_projection.name, f.oid);
    if coalesce(array_length(create_projection.tables, 1), 0) = 0 or array_position(create_projection.tables, null) is not null then
        raise exception 'the projection % needs the tables that its function writes', create_projection.name
            using errcode = 'invalid_parameter_value', constraint = 'a_projection_has_tables';
    end if;
    if current_setting('track_counts') <> 'on' then
        raise exception 'track_counts is off: writes to tables that are not tracked could not be seen'
            using errcode = 'object_not_in_prerequisite_state', constraint = 'track_counts_is_on', hint = 'Set it on.';
    end if;
    if create_projection.chain is not null then
        cid := chain_named(create_projection.chain);
    elsif (select count(*) from chains) = 1 and exists (
        select from unnest(create_projection.tables) t(rel)
        where not exists (select from pg_index i
                          join pg_attribute a on a.attrelid = t.rel and a.attnum = any (i.indkey::smallint[])
                          where i.indrelid = t.rel and i.indisprimary and a.attname = 'chain_id')) then
        select c.chain_id into cid from chains c;
    end if;
    if create_projection.after is not null then
        if create_projection.after <> 'token_balances' then
            raise exception 'after % is not possible: token_balances is the projection that others can follow', create_projection.after
                using errcode = 'feature_not_supported', constraint = 'after_names_token_balances';
        end if;
        if f.prosqlbody is not null or coalesce(array_to_string(f.proconfig, ' '), '') ~ 'search_path'
            or f.prosrc ~* '[[:<:]]ebbtide"?[[:space:]]*[.][[:space:]]*"?(balance|token_totals)' then
            raise exception '% follows %: it must find `balances` by that name alone', shown, create_projection.after
                using errcode = 'feature_not_supported', constraint = 'followers_read_balances_by_its_short_name',
                      hint = 'Write `balances`, `balance_changes` and `token_totals` without a schema, no `set search_path`, and a body '
                          'in quotes: while it catches up, they are replicas at its block.';
        end if;
    end if;
    insert into projections (name, apply, tables, after, chain_id, start_height)
    values (create_projection.name,
        format('%I.%I(bigint,bigint)', (select n.nspname from pg_namespace n where n.oid = f.pronamespace), f.proname),
        (select array_agg(relation_name(t.rel) order by o) from unnest(create_projection.tables) with ordinality t(rel, o)),
        create_projection.after, cid, create_projection.start_height);
    perform track_tables(create_projection.name, create_projection.tables, cid);
    perform refuse_schemas_of_others(create_projection.name);
end $$;
comment on function create_projection is
    'Calls apply(chain_id, height) for every block, and takes back what it wrote into its tables when the block is replaced.';

create or replace function drop_projection(name text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
declare
    ledger constant text := coalesce(current_setting('ebbtide.ledger', true), '');
    t record;
    g text;
begin
    if not exists (select from projections p where p.name = drop_projection.name) then
        raise exception 'there is no projection named %', drop_projection.name
            using errcode = 'no_data_found', constraint = 'unknown_projection',
                  hint = 'select name from projections lists them.';
    end if;
    -- Another program's can outlive it.
    if drop_projection.name in ('token_balances', 'option_vaults') then
        raise exception 'the projection % is the program''s own', drop_projection.name
            using errcode = 'feature_not_supported', constraint = 'built_in_projections_stay';
    end if;
    -- A block in hand holds its checkpoint: once it is ours, nothing more is applied.
    perform set_config('ebbtide.ledger', 'on', true);
    delete from checkpoints k where k.projection = drop_projection.name;
    for t in select k.id, k.relation from tracked_tables k where k.projection = drop_projection.name loop
        if to_regclass(t.relation) is not null then
            foreach g in array array['statement', 'truncate', 'insert', 'update', 'delete'] loop
                execute format('drop trigger if exists %I on %s', 'ebbtide_' || g, t.relation);
            end loop;
        end if;
        execute format('drop table if exists undo_%s', t.id);
        execute format('drop function if exists track_%1$s_old(), track_%1$s_new(), track_%1$s_both()', t.id);
    end loop;
    delete from applied_blocks a where a.projection = drop_projection.name;
    delete from reorgs r where r.projection = drop_projection.name;
    delete from rebuilds r where r.projection = drop_projection.name;
    delete from rejected_events r where r.projection = drop_projection.name;
    delete from projections p where p.name = drop_projection.name;
    perform set_config('ebbtide.ledger', ledger, true);
    perform tell('ebbtide_blocks', '0');
end $$;
comment on function drop_projection is 'Ends a projection; its tables stay as they are and are ordinary tables again.';

-- The undo does not fit the tables any more: without it, the projection is built again.
create or replace function forget_undo(name text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
declare
    ledger constant text := coalesce(current_setting('ebbtide.ledger', true), '');
    t record;
begin
    if not exists (select from tracked_tables k where k.projection = forget_undo.name) then
        raise exception 'there is no projection named % with tables of its own', forget_undo.name
            using errcode = 'no_data_found', constraint = 'unknown_projection',
                  hint = 'select name, tables from projections lists them.';
    end if;
    update checkpoints k set redo_from = 0, halted_reason = null where k.projection = forget_undo.name;
    perform set_config('ebbtide.ledger', 'on', true);
    delete from applied_blocks a where a.projection = forget_undo.name;
    perform set_config('ebbtide.ledger', ledger, true);
    for t in select k.id from tracked_tables k where k.projection = forget_undo.name loop
        execute format('delete from undo_%s', t.id);
    end loop;
    -- All is built again at the next block, be it on another table of this name.
    update tracked_tables k set columns = '{}', shape = '' where k.projection = forget_undo.name;
end $$;
comment on function forget_undo is 'Drops the undo of a projection; it is emptied and applied again from its start.';

-- From here on, writes of this transaction belong to a block. Returns the search path for its code, which finds without
-- naming a schema: the chain tables, the projection's own, what is in public.
drop function if exists enter_block(text, bigint, bigint, text);
create or replace function enter_block(name text, chain bigint, at_height bigint, tracking text) returns text
language plpgsql set search_path = ebbtide, pg_temp as $$
declare around record;
begin
    select * into around from surroundings(name);
    perform set_config('ebbtide.projection', name, true), set_config('ebbtide.chain_id', chain::text, true),
        set_config('ebbtide.height', at_height::text, true), set_config('ebbtide.tracking', tracking, true),
        set_config('ebbtide.imaged', '', true), set_config('ebbtide.emitted', '', true),
        set_config('ebbtide.untracked_writes', coalesce(rows_written(around.others)::text, ''), true);
    if current_setting('ebbtide.settled', true) = 'on' then
        perform defer_again(name);
    end if;
    return around.path;
end $$;

-- What was settled for the block before, in this same transaction, is deferred again as its constraint says.
create or replace function defer_again(name text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare c record;
begin
    for c in
        select distinct n.nspname, con.conname
        from tracked_tables k
        join pg_constraint con on con.conrelid = to_regclass(k.relation) and con.condeferred
        join pg_namespace n on n.oid = con.connamespace
        where k.projection = name
    loop
        execute format('set constraints %I.%I deferred', c.nspname, c.conname);
    end loop;
end $$;

-- Rows written to these tables, by table, so far: in this transaction, and in those before it of this session whose counts
-- were not sent off yet. Within a transaction they only grow.
create or replace function rows_written(tables oid[]) returns jsonb
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return (select jsonb_object_agg(w.t, w.rows)
            from (select t, pg_stat_get_xact_tuples_inserted(t) + pg_stat_get_xact_tuples_updated(t)
                      + pg_stat_get_xact_tuples_deleted(t) as rows
                  from unnest(tables) t) w
            where w.rows > 0);
end $$;

-- What a block's code may find, and the tables that it may not write: all but the projection's own. Looking through the
-- catalog costs as much as a small block, so a session keeps what it saw for a second, or until a table is made: that one
-- has a number above all others (or, after four billion of them, waits for the second to end).
create or replace function surroundings(name text, out path text, out others oid[])
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    kept text[] := nullif(current_setting('ebbtide.around_' || name, true), '');
    newest text := (select c.oid::text from pg_catalog.pg_class c order by c.oid desc limit 1);
begin
    if kept[1] = newest and kept[2]::timestamptz > clock_timestamp() then
        path := kept[3];
        others := kept[4];
        return;
    end if;
    perform refuse_schemas_of_others(name);
    path := (select string_agg(quote_ident(s), ', ' order by place) from unnest(apply_schemas(name)) with ordinality a (s, place));
    others := other_tables(name);
    perform set_config('ebbtide.around_' || name,
        array[newest, (clock_timestamp() + interval '1 second')::text, path, others::text]::text, false);
end $$;

create or replace function other_tables(name text) returns oid[]
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return array(
        select c.oid
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind = 'r' and c.relpersistence <> 't'
          and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
          and c.oid <> 'ebbtide.rejected_events'::regclass
          and not exists (select from tracked_tables k where k.projection = name
                          and c.oid in (to_regclass(k.relation), to_regclass('ebbtide.undo_' || k.id))));
end $$;

-- The block's writes are done: nothing may be left over for the commit, and nothing else may have been written.
create or replace function leave_block(name text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    around constant record := surroundings(name);
    before_block jsonb := nullif(current_setting('ebbtide.untracked_writes'), '');
    after_block jsonb;
    other text;
begin
    -- What was deferred is the block's code. Until its path is gone again, nothing is named without its schema.
    perform set_config('search_path', around.path, true);
    set constraints all immediate;
    perform pg_catalog.set_config('search_path', 'ebbtide, pg_temp', true);
    after_block := rows_written(around.others);
    if after_block is distinct from before_block then
        select relation_name(w.key::oid) into other
        from jsonb_each_text(after_block) w
        where w.value::bigint > coalesce((before_block ->> w.key)::bigint, 0)
        order by 1 limit 1;
        if found then
            raise exception 'the projection % wrote %, which is not one of its tables: that could not be undone', name, other
                using errcode = 'object_not_in_prerequisite_state', constraint = 'projections_write_their_own_tables',
                      hint = 'Name that table in create_projection(..., tables => ...), or write it elsewhere.';
        end if;
    end if;
    if current_setting('ebbtide.tracking') = 'on' then
        perform tell_block(name);
    end if;
    perform set_config('ebbtide.settled', 'on', true), set_config('ebbtide.projection', '', true),
        set_config('ebbtide.tracking', '', true);
end $$;

-- The one place where a checkpoint of a projection with tables of its own moves: from where it was seen, at this seq and on
-- this block (null: nothing is applied), to another block. The seq alone would not do: blocks are sent ahead on a predicted
-- one, and another processor's transaction of that number may have held other blocks. Null: nothing was done.
--
-- `how`: apply (its undo is kept), final (it is not), undo, or empty (all is taken out).
create or replace function move_checkpoint(
    chain bigint, name text, on_seq bigint, on_height bigint, on_hash text, how text, to_height bigint, to_hash text,
    start_at bigint default null, digest text default null, to_redo_from bigint default null
) returns bigint
language plpgsql set search_path = ebbtide, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off as $$
declare
    forward constant boolean := how in ('apply', 'final');
    new_seq bigint;
begin
    update checkpoints k
    set seq = k.seq + 1, height = to_height, hash = to_hash, through_height = to_height,
        start_height = case when forward then start_at when to_height is not null then k.start_height end,
        journal_from = case how when 'apply' then k.journal_from when 'final' then to_height + 1
            else case when to_height is not null and k.journal_from is not null then least(k.journal_from, to_height + 1) end end,
        history_from = case how when 'final' then to_height when 'empty' then null else k.history_from end,
        redo_from = to_redo_from, deep_change = k.deep_change and to_redo_from is not null,
        apply_digest = case how when 'undo' then k.apply_digest else digest end,
        failed_height = case when not forward then k.failed_height end,
        failed_reason = case when not forward then k.failed_reason end,
        failures = case when forward then 0 else k.failures end, updated_at = now()
    where k.chain_id = chain and k.projection = name
      and k.seq = on_seq and k.height is not distinct from on_height and k.hash is not distinct from on_hash
      and (not forward or k.redo_from is null and k.halted_reason is null and (not k.paused or k.pause_at >= to_height))
      -- What is told of a block comes from its undo; of all that is applied again, nothing is.
      and (how <> 'final' or k.tells = 0 or current_setting('ebbtide.again', true) = 'on')
    returning k.seq into new_seq;
    return new_seq;
end $$;

-- Moves a checkpoint over blocks, if the ones to hold are what they were when they were looked at: those above the block that
-- it stands on, and that one, first. Null: nothing was done. The same fence as in sql/queries/apply.sql; here each statement sees
-- what was committed before it, so no block comes unseen after the chain's row is locked.
drop function if exists begin_block(bigint, text, bigint, bigint[], text[], bigint[], bigint, bigint, text, bigint, bigint, boolean, text);
drop function if exists begin_block(bigint, text, bigint, bigint, text, bigint[], text[], bigint[], bigint, bigint, text, bigint, bigint, boolean, text);
create or replace function begin_block(
    chain bigint, name text, on_seq bigint, on_height bigint, on_hash text, heights bigint[], hashes text[], revisions bigint[],
    needs_complete_to bigint, start_at bigint, record boolean, digest text
) returns bigint
language plpgsql set search_path = ebbtide, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off as $$
declare
    last constant integer := cardinality(heights);
    holds boolean;
    new_seq bigint;
begin
    if needs_complete_to is not null then
        perform from chains c where c.chain_id = chain and c.complete_to >= needs_complete_to for share;
        if not found then
            return null;
        end if;
    end if;
    with held as materialized (
        select b.height, b.hash, b.revision
        from blocks b
        where b.chain_id = chain and b.height >= heights[1] and b.height <= heights[last]
        order by b.height
        for share skip locked
    )
    select count(w.height) = last and count(*) = last into holds
    from held h
    left join unnest(heights, hashes, revisions) as w (height, hash, revision)
        on w.height = h.height and w.hash = h.hash and coalesce(w.revision, h.revision) = h.revision;
    if not holds then
        return null;
    end if;
    new_seq := move_checkpoint(chain, name, on_seq, on_height, on_hash, case when record then 'apply' else 'final' end,
        heights[last], hashes[last], start_at, digest);
    if new_seq is not null and record then
        insert into applied_blocks (chain_id, projection, height, hash, revision, seq)
        select chain, name, w.height, w.hash, w.revision, new_seq
        from unnest(heights, hashes, revisions) as w (height, hash, revision)
        where on_height is null or w.height > on_height;
    end if;
    return new_seq;
end $$;

-- The call of a projection's function, if it may run with our rights: its oid cannot be called, and nobody who is not trusted can put another
-- one under its name.
drop function if exists call_apply(text, bigint, bigint);
create or replace function apply_call(name text) returns text
language plpgsql stable set search_path = ebbtide, pg_temp as $$
declare p record;
begin
    select q.apply, f.oid, f.proowner, n.nspowner into p
    from projections q
    left join pg_proc f on f.oid = to_regprocedure(q.apply)
    left join pg_namespace n on n.oid = f.pronamespace
    where q.name = apply_call.name;
    if p.oid is null then
        raise exception 'the function % of the projection % is gone', p.apply, name
            using errcode = 'undefined_function', constraint = 'apply_function_is_gone',
                  hint = 'Create it again, or drop_projection.';
    end if;
    if not (is_trusted(p.proowner) and is_trusted(p.nspowner)) then
        perform refuse_function_of_others(name, p.oid);
    end if;
    -- The name without its argument types; two bigints find the same function again.
    return 'select ' || left(p.apply, -length('(bigint,bigint)')) || '($1, $2)';
end $$;

-- Where the code of a projection finds what it names without a schema, in this order. What the program itself applies to
-- tables of ours needs nothing of public.
drop function if exists apply_path(text);
create or replace function apply_schemas(name text) returns name[]
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return (select array_agg(s.nspname order by s.place, s.nspname)
            from (select 0 as place, 'ebbtide'::name as nspname
                  union
                  select 1, n.nspname
                  from tracked_tables k
                  join pg_class c on c.oid = to_regclass(k.relation)
                  join pg_namespace n on n.oid = c.relnamespace
                  where k.projection = name and n.nspname not in ('ebbtide', 'public')
                  union
                  select 2, 'public'
                  from projections p
                  where p.name = apply_schemas.name and to_regnamespace('public') is not null
                    and (p.apply is not null or exists (
                        select from tracked_tables k join pg_class c on c.oid = to_regclass(k.relation)
                        where k.projection = p.name and c.relnamespace <> 'ebbtide'::regnamespace))) s);
end $$;

-- Settings that change what code computes or whether it may, as they are now, or put back: the code of a block finds them as
-- that of the first one in its transaction did, whatever was left behind by another. What else a function sets lasts until the
-- end of its transaction (reset_session).
create or replace function block_settings(back text[] default null) returns text[]
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    names constant text[] := '{session_replication_role,statement_timeout,lock_timeout,idle_in_transaction_session_timeout,
        idle_session_timeout,timezone,datestyle,intervalstyle,extra_float_digits,bytea_output,xmloption,xmlbinary,
        standard_conforming_strings,escape_string_warning,backslash_quote,quote_all_identifiers,array_nulls,
        transform_null_equals,client_encoding,client_min_messages,lc_monetary,lc_numeric,lc_time,
        default_transaction_isolation,default_transaction_read_only,default_transaction_deferrable,
        default_text_search_config,default_tablespace,default_table_access_method,temp_tablespaces,row_security,
        check_function_bodies,synchronous_commit,plan_cache_mode}';
    found text[] := array(select current_setting(n) from unnest(names) n);
begin
    if back <> found then
        perform set_config(s.name, s.setting, false)
        from unnest(names, back, found) s (name, setting, left_behind)
        where s.setting <> s.left_behind;
    end if;
    return found;
end $$;

-- Before the end of a transaction that ran code of people: the session is what its first words made it again. No setting is
-- left behind, known or not, but for what `surroundings` keeps.
create or replace function reset_session(names text[], settings text[]) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    kept record;
begin
    select array_agg(g.name) as names, array_agg(g.setting) as settings into kept
    from (select 'ebbtide.around_' || p.name as name, current_setting('ebbtide.around_' || p.name, true) as setting
          from projections p) g
    where g.setting <> '';
    reset all;
    perform set_config(s.name, s.setting, false)
    from unnest(reset_session.names || kept.names, reset_session.settings || kept.settings) s (name, setting);
end $$;

-- The function of a projection on blocks, one after the other, with their undo: for the caller, who moved the checkpoint over them, or
-- compares and moves none. What does not change between them is asked once. `on_replica`: balances stand elsewhere, and it
-- finds them as of each block.
create or replace function run_apply(
    chain bigint, name text, on_height bigint, on_hash text, heights bigint[], hashes text[], record boolean, on_replica boolean
) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    call constant text := apply_call(name);
    path constant text := enter_block(name, chain, heights[1], case when record then 'on' else 'final' end);
    who constant text[] := array[current_setting('session_authorization'), current_setting('role')];
    settings constant text[] := block_settings();
    reads bigint;
begin
    for at in 1..cardinality(heights) loop
        if at > 1 then
            perform set_config('ebbtide.height', heights[at]::text, true), set_config('ebbtide.imaged', '', true), defer_again(name);
        end if;
        if on_replica then
            perform advance_replica(chain, case at when 1 then on_height else heights[at - 1] end,
                case at when 1 then on_hash else hashes[at - 1] end, heights[at], hashes[at]);
            reads := live_reads();
        end if;
        -- Under its own path runs the function, with what it deferred, and nothing else: until that path is gone again, nothing
        -- is named without its schema.
        perform set_config('search_path', path, true);
        execute call using chain, heights[at];
        set constraints all immediate;
        perform pg_catalog.set_config('search_path', 'ebbtide, pg_temp', true);
        -- Another role may not even look into this schema.
        if array[current_setting('session_authorization'), current_setting('role')] <> who then
            perform set_config('session_authorization', who[1], false);
            perform set_config('role', who[2], false);
        end if;
        perform block_settings(settings);
        if on_replica and live_reads() > reads then
            raise exception 'the projection % reads ebbtide.balances or its totals by the full name, or through a view: while it catches up, that is not at its block',
                name
                using errcode = 'object_not_in_prerequisite_state', constraint = 'followers_read_balances_by_its_short_name',
                      hint = 'Write `balances`, `balance_changes` and `token_totals` without a schema, and no `set search_path` on the '
                          'function.';
        end if;
    end loop;
    perform leave_block(name);
end $$;

-- Blocks of an SQL projection in one transaction: fence, checkpoint, then the function on each. An error does not say which of
-- several failed: apply them one by one.
drop function if exists apply_sql_block(bigint, text, bigint, bigint[], text[], bigint[], bigint, bigint, text, bigint, bigint, boolean, text);
drop function if exists apply_sql_block(bigint, text, bigint, bigint, text, bigint[], text[], bigint[], bigint, bigint, text, bigint, bigint, boolean, text);
create or replace function apply_sql_blocks(
    chain bigint, name text, on_seq bigint, on_height bigint, on_hash text, heights bigint[], hashes text[], revisions bigint[],
    needs_complete_to bigint, start_at bigint, record boolean, digest text, on_replica boolean
) returns bigint
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    new_seq constant bigint := begin_block(chain, name, on_seq, on_height, on_hash, heights, hashes, revisions, needs_complete_to,
        start_at, record, digest);
    first constant integer := case when on_height = heights[1] then 2 else 1 end;
begin
    if new_seq is not null then
        perform check_shapes(name);
        perform run_apply(chain, name, on_height, on_hash, heights[first:], hashes[first:], record, on_replica);
    end if;
    return new_seq;
end $$;

-- Takes a projection with tracked tables back from the block it stands on to another one (null: to before everything).
drop function if exists undo_blocks(bigint, text, bigint, bigint, bigint, text, bigint);
create or replace function undo_blocks(
    chain bigint, name text, on_seq bigint, on_height bigint, on_hash text, to_height bigint, to_hash text, to_redo_from bigint,
    out seq bigint, out restored bigint, out blocks bigint
)
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
declare
    above constant bigint := coalesce(to_height, -2);
    journalled_from constant bigint := (select greatest(above + 1, k.start_height, k.journal_from)
                                        from checkpoints k where k.chain_id = chain and k.projection = name);
    from_seq constant bigint := (select min(coalesce(a.seq, 0)) from applied_blocks a
                                 where a.chain_id = chain and a.projection = name and a.height > above);
    undone jsonb;
    rows jsonb := '[]';
begin
    undo_blocks.seq := move_checkpoint(chain, name, on_seq, on_height, on_hash, 'undo', to_height, to_hash,
        to_redo_from => to_redo_from);
    if undo_blocks.seq is null then
        return;
    end if;
    perform check_journal(chain, name, journalled_from, on_height);
    if exists (select from sink_streams t join sinks s on s.name = t.sink
               where t.chain_id = chain and t.projection = undo_blocks.name and t.began >= from_seq and sink_tells(s) & 16 > 0) then
        rows := rows_before(name, chain, above);
    end if;
    undo_blocks.restored := restore_tables(name, chain, above);
    with gone as (
        delete from applied_blocks a where a.chain_id = chain and a.projection = name and a.height > above returning a.height, a.seq
    )
    select count(*), told_blocks(chain, name, array_agg(array[g.seq, g.height])) into undo_blocks.blocks, undone from gone g;
    perform tell_undone(chain, name, undo_blocks.seq, to_height, to_hash, undone, 'reorg', from_seq, rows);
    delete from rejected_events r where r.chain_id = chain and r.projection = name and r.height > above;
end $$;

-- A journal with a hole would leave rows behind that no block stands for. Seen are: the block that the state stands on, undo of
-- a block that was not applied, and any other, where the chain has a block at each height.
create or replace function check_journal(chain bigint, name text, from_height bigint, on_height bigint) returns void
language plpgsql stable set search_path = ebbtide, pg_temp set enable_seqscan = off as $$
declare
    missing bigint;
    t record;
begin
    select h into missing
    from generate_series(from_height, on_height) h
    where (h = on_height or (select c.complete_to is null from chains c where c.chain_id = chain))
      and not exists (select from applied_blocks a where a.chain_id = chain and a.projection = name and a.height = h)
    limit 1;
    for t in select k.id from tracked_tables k where k.projection = name and missing is null
                 and to_regclass('ebbtide.undo_' || k.id) is not null order by k.id loop
        execute format('select u.height from undo_%s u where u.chain_id = $1 and u.height >= $2 and not exists (
            select from applied_blocks a where a.chain_id = $1 and a.projection = $3 and a.height = u.height) limit 1', t.id)
        into missing using chain, from_height, name;
        exit when missing is not null;
    end loop;
    if missing is not null then
        raise exception 'the journal of the projection % lacks block %: it cannot be taken back exactly', name, missing
            using errcode = 'data_corrupted', constraint = 'the_journal_has_no_holes',
                  hint = format('select ebbtide.forget_undo(%L) has the projection applied again from its start.', name);
    end if;
end $$;

-- `beside`: what stands stays, until replace_tables_by_built compares it with what was built from here on.
drop function if exists empty_projection(bigint, text, bigint, boolean);
create or replace function empty_projection(
    chain bigint, name text, on_seq bigint, on_height bigint, on_hash text, beside boolean,
    out seq bigint, out restored bigint, out blocks bigint
)
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
declare
    undone jsonb;
begin
    empty_projection.seq := move_checkpoint(chain, name, on_seq, on_height, on_hash, 'empty', null, null);
    if empty_projection.seq is null then
        return;
    end if;
    perform set_config('ebbtide.again', 'on', true);
    if beside then
        empty_projection.restored := 0;
        perform build_tables_beside(name, chain);
    else
        empty_projection.restored := empty_tables(name, chain);
    end if;
    with gone as (
        delete from applied_blocks a where a.chain_id = chain and a.projection = name returning a.height, a.seq
    )
    select count(*), told_blocks(chain, name, array_agg(array[g.seq, g.height])) into empty_projection.blocks, undone from gone g;
    perform tell_undone(chain, name, empty_projection.seq, null, null, undone, 'rebuild');
    delete from rejected_events r where r.chain_id = chain and r.projection = name;
end $$;

-- The undo horizon, for a state that was compared as it stands.
create or replace function prune_undo(chain bigint, name text, horizon bigint, expected_seq bigint) returns void
language plpgsql set search_path = ebbtide, pg_temp set enable_seqscan = off as $$
declare t record;
begin
    update checkpoints k
    set journal_from = horizon + 1, history_from = greatest(k.history_from, horizon)
    where k.chain_id = chain and k.projection = name and k.seq = expected_seq and coalesce(k.journal_from, -1) <= horizon;
    perform from checkpoints k where k.chain_id = chain and k.projection = name and k.seq = expected_seq for update;
    if not found then
        return;
    end if;
    delete from applied_blocks a where a.chain_id = chain and a.projection = name and a.height <= horizon;
    for t in select k.id from tracked_tables k where k.projection = name loop
        execute format('delete from undo_%s where chain_id = $1 and height <= $2', t.id) using chain, horizon;
    end loop;
end $$;

-- A projection that the program applies: its tables are tracked, its name is known.
drop function if exists register_projection(text, text[], text);
create or replace function register_projection(
    name text, tables text[], kind text default null, ignores_catching_up boolean default false
) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
declare
    wanted text[];
    known text[];
begin
    -- Two programs that start at once.
    perform pg_advisory_xact_lock(hashtext('ebbtide register_projection'));
    select array_agg(relation_name(t.rel::regclass) order by o) into wanted
    from unnest(register_projection.tables) with ordinality t(rel, o);
    select p.tables into known from projections p where p.name = register_projection.name;
    if not found then
        insert into projections (name, tables, kind, ignores_catching_up)
        values (register_projection.name, wanted, register_projection.kind, register_projection.ignores_catching_up);
    elsif exists (select from projections p where p.name = register_projection.name and p.apply is not null) then
        raise exception 'there is a projection named % already, and a function applies it', register_projection.name
            using errcode = 'unique_violation', constraint = 'projection_name_is_taken',
                  hint = format('select ebbtide.drop_projection(%L) removes it; its tables stay.', register_projection.name);
    elsif known <> wanted then
        raise exception 'the projection % has the tables %, not %', register_projection.name,
            array_to_string(known, ', '), array_to_string(wanted, ', ')
            using errcode = 'object_not_in_prerequisite_state', constraint = 'a_projection_keeps_its_tables',
                  hint = format('select ebbtide.unregister_projection(%L) lets it begin again.', register_projection.name);
    end if;
    update projections p set ignores_catching_up = register_projection.ignores_catching_up
    where p.name = register_projection.name and p.ignores_catching_up <> register_projection.ignores_catching_up;
    if not exists (select from tracked_tables k where k.projection = register_projection.name) then
        perform track_tables(register_projection.name, wanted::regclass[], null);
    end if;
end $$;

create or replace function unregister_projection(name text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
begin
    update projections p set apply = '-' where p.name = unregister_projection.name and p.apply is null
        and exists (select from tracked_tables k where k.projection = p.name);
    perform drop_projection(unregister_projection.name);
end $$;

-- Keeps an event that a projection would not take, in the transaction of its block.
create or replace function reject_event(
    chain bigint, name text, at_height bigint, at_hash text, at_tx bigint, at_event bigint, raw_event jsonb, why text
) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
begin
    insert into rejected_events (chain_id, height, tx_index, event_index, projection, block_hash, raw, reason)
    values (chain, at_height, at_tx, at_event, name, at_hash, raw_event, why)
    on conflict (chain_id, height, tx_index, event_index, projection) do update
    set block_hash = excluded.block_hash, raw = excluded.raw, reason = excluded.reason, at = now();
end $$;

-- One notice for a projection that was built again: consumers read it again instead of following every change.
create or replace function note_rebuilt(chain bigint, name text, at_height bigint, at_hash text, why text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
begin
    delete from rebuilds r where r.chain_id = chain and r.projection = name;
    perform tell_rebuilt(chain, name, at_height, at_hash, why);
    perform tell('ebbtide_notices', jsonb_build_object('type', 'ebbtide.projection.rebuilt', 'chain',
        (select c.name from chains c where c.chain_id = chain), 'projection', name, 'height', at_height, 'hash', at_hash,
        'reason', why)::text);
end $$;

-- This text is applied when it changed: the triggers that were made by an earlier one are built again at the next block.
update tracked_tables set shape = '';
