-- Projections: pieces of derived state that people add, each a function and the tables it writes.

-- What is compared to find that a function changed.
create or replace function apply_digest(apply text) returns text
language plpgsql stable set search_path = ebbtide, pg_temp as $$
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

create or replace function create_projection(
    name text, apply regprocedure, tables regclass[], after text default null, chain text default null,
    start_height bigint default null
) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
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
    if not pg_has_role(current_user, f.proowner, 'usage') then
        raise exception 'the owner of % is %, and Ebbtide runs as %', shown, f.proowner::regrole, current_user
            using errcode = 'insufficient_privilege', constraint = 'projections_are_their_owner_s',
                  hint = format('alter function %s owner to %s', shown, current_user);
    end if;
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
            or f.prosrc ~* '\mebbtide"?\s*\.\s*"?balance' then
            raise exception '% follows %: it must find `balances` by that name alone', shown, create_projection.after
                using errcode = 'feature_not_supported', constraint = 'followers_read_balances_by_its_short_name',
                      hint = 'Write `balances` and `balance_changes` without a schema, no `set search_path`, and a body in quotes: '
                          'while it catches up, they are replicas at its block.';
        end if;
    end if;
    insert into projections (name, apply, tables, after, chain_id, start_height)
    values (create_projection.name,
        format('%I.%I(bigint,bigint)', (select n.nspname from pg_namespace n where n.oid = f.pronamespace), f.proname),
        (select array_agg(relation_name(t.rel) order by o) from unnest(create_projection.tables) with ordinality t(rel, o)),
        create_projection.after, cid, create_projection.start_height);
    perform track_tables(create_projection.name, create_projection.tables, cid);
end $$;
comment on function create_projection is
    'Calls apply(chain_id, height) for every block, and takes back what it wrote into its tables when the block is replaced.';

create or replace function drop_projection(name text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
declare
    t record;
    g text;
begin
    if not exists (select from projections p where p.name = drop_projection.name) then
        raise exception 'there is no projection named %', drop_projection.name
            using errcode = 'no_data_found', constraint = 'unknown_projection',
                  hint = 'select name from projections lists them.';
    end if;
    if exists (select from projections p where p.name = drop_projection.name and p.apply is null) then
        raise exception 'the projection % is the program''s own', drop_projection.name
            using errcode = 'feature_not_supported', constraint = 'built_in_projections_stay';
    end if;
    -- A block in hand holds its checkpoint: once it is ours, nothing more is applied.
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
    perform pg_notify('ebbtide_blocks', '0');
end $$;
comment on function drop_projection is 'Ends a projection; its tables stay as they are and are ordinary tables again.';

-- The undo does not fit the tables any more: without it, the projection is made anew.
create or replace function forget_undo(name text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
declare t record;
begin
    if not exists (select from tracked_tables k where k.projection = forget_undo.name) then
        raise exception 'there is no projection named % with tables of its own', forget_undo.name
            using errcode = 'no_data_found', constraint = 'unknown_projection',
                  hint = 'select name, tables from projections lists them.';
    end if;
    update checkpoints k set redo_from = 0, halted_reason = null where k.projection = forget_undo.name;
    delete from applied_blocks a where a.projection = forget_undo.name;
    for t in select k.id from tracked_tables k where k.projection = forget_undo.name loop
        execute format('delete from undo_%s', t.id);
    end loop;
    -- All is made anew at the next block, be it on another table of this name.
    update tracked_tables k set columns = '{}', shape = '' where k.projection = forget_undo.name;
end $$;
comment on function forget_undo is 'Drops the undo of a projection; it is emptied and applied again from its start.';

-- From here on, writes of this transaction belong to a block. What its code finds without naming a schema: the chain
-- tables, the projection's own, what is in public.
create or replace function enter_block(name text, chain bigint, at_height bigint, tracking text) returns void
language plpgsql as $$
declare around record;
begin
    select * into around from ebbtide.surroundings(name);
    perform set_config('ebbtide.projection', name, true), set_config('ebbtide.chain_id', chain::text, true),
        set_config('ebbtide.height', at_height::text, true), set_config('ebbtide.tracking', tracking, true),
        set_config('ebbtide.imaged', '', true),
        set_config('ebbtide.untracked_writes', coalesce(ebbtide.rows_written(around.others)::text, ''), true),
        set_config('ebbtide.search_path', current_setting('search_path'), true),
        set_config('search_path', around.path, true);
    if current_setting('ebbtide.settled', true) = 'on' then
        perform ebbtide.defer_again(name);
    end if;
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
language plpgsql stable as $$
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
language plpgsql as $$
declare
    kept text[] := nullif(current_setting('ebbtide.around_' || name, true), '');
    newest text := (select c.oid::text from pg_catalog.pg_class c order by c.oid desc limit 1);
begin
    if kept[1] = newest and kept[2]::timestamptz > clock_timestamp() then
        path := kept[3];
        others := kept[4];
        return;
    end if;
    path := ebbtide.apply_path(name);
    others := ebbtide.other_tables(name);
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
language plpgsql as $$
declare
    before_block jsonb := nullif(current_setting('ebbtide.untracked_writes'), '');
    after_block jsonb;
    other text;
begin
    set constraints all immediate;
    -- Back to the path of enter_block first: under another one, every statement below would be planned again.
    perform set_config('search_path', current_setting('ebbtide.search_path'), true);
    select ebbtide.rows_written(s.others) into after_block from ebbtide.surroundings(name) s;
    if after_block is distinct from before_block then
        select ebbtide.relation_name(w.key::oid) into other
        from jsonb_each_text(after_block) w
        where w.value::bigint > coalesce((before_block ->> w.key)::bigint, 0)
        order by 1 limit 1;
        if found then
            raise exception 'the projection % wrote %, which is not one of its tables: that could not be undone', name, other
                using errcode = 'object_not_in_prerequisite_state', constraint = 'projections_write_their_own_tables',
                      hint = 'Name that table in create_projection(…, tables => …), or write it elsewhere.';
        end if;
    end if;
    perform set_config('ebbtide.settled', 'on', true), set_config('ebbtide.projection', '', true),
        set_config('ebbtide.tracking', '', true);
end $$;

-- Moves a checkpoint over one block, if the blocks to hold are what they were when they were looked at and nobody else
-- moved it. Null: nothing was done. The same fence as in sql/queries/apply_block.sql.
create or replace function begin_block(
    chain bigint, name text, expected_seq bigint, heights bigint[], hashes text[], revisions bigint[], needs_complete_to bigint,
    at_height bigint, at_hash text, at_revision bigint, start_at bigint, note boolean, digest text
) returns bigint
language plpgsql set search_path = ebbtide, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
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
        where b.chain_id = chain and b.height >= heights[1] and b.height <= heights[cardinality(heights)]
          and b.height + 0 = any (heights)
        order by b.height
        for share skip locked
    )
    select count(*) = cardinality(heights) into holds
    from held h
    join unnest(heights, hashes, revisions) as w (height, hash, revision)
        on w.height = h.height and w.hash = h.hash and coalesce(w.revision, h.revision) = h.revision;
    if not holds then
        return null;
    end if;
    update checkpoints k
    set seq = k.seq + 1, height = at_height, hash = at_hash, through_height = at_height, start_height = start_at,
        journal_from = case when note then k.journal_from else at_height + 1 end,
        history_from = case when note then k.history_from else at_height end,
        apply_digest = digest, failed_height = null, failed_reason = null, failures = 0, updated_at = now()
    where k.chain_id = chain and k.projection = name and k.seq = expected_seq
      and k.redo_from is null and k.halted_reason is null and (not k.paused or k.pause_at >= at_height)
    returning k.seq into new_seq;
    if new_seq is not null and note then
        insert into applied_blocks (chain_id, projection, height, hash, revision)
        values (chain, name, at_height, at_hash, at_revision);
    end if;
    return new_seq;
end $$;

-- The function of a projection on one block.
create or replace function call_apply(name text, chain bigint, at_height bigint) returns void
language plpgsql as $$
declare p record;
begin
    select q.apply, to_regprocedure(q.apply) as fn into p from ebbtide.projections q where q.name = call_apply.name;
    if p.fn is null then
        raise exception 'the function % of the projection % is gone', p.apply, name
            using errcode = 'undefined_function', constraint = 'apply_function_is_gone',
                  hint = 'Create it again, or drop_projection.';
    end if;
    -- The name without its argument types; two bigints find the same function again.
    execute 'select ' || left(p.apply, -length('(bigint,bigint)')) || '($1, $2)' using chain, at_height;
end $$;

create or replace function apply_path(name text) returns text
language plpgsql stable as $$
begin
    return (select string_agg(quote_ident(s.nspname), ', ' order by s.place, s.nspname)
            from (select 0 as place, 'ebbtide' as nspname
                  union
                  select 1, n.nspname
                  from ebbtide.tracked_tables k
                  join pg_class c on c.oid = to_regclass(k.relation)
                  join pg_namespace n on n.oid = c.relnamespace
                  where k.projection = name and n.nspname not in ('ebbtide', 'public')
                  union
                  select 2, 'public') s);
end $$;

-- One block of an SQL projection: fence, function, undo, checkpoint.
create or replace function apply_sql_block(
    chain bigint, name text, expected_seq bigint, heights bigint[], hashes text[], revisions bigint[], needs_complete_to bigint,
    at_height bigint, at_hash text, at_revision bigint, start_at bigint, note boolean, digest text
) returns bigint
language plpgsql as $$
declare new_seq bigint;
begin
    new_seq := ebbtide.begin_block(chain, name, expected_seq, heights, hashes, revisions, needs_complete_to, at_height, at_hash,
        at_revision, start_at, note, digest);
    if new_seq is null then
        return null;
    end if;
    perform ebbtide.check_shapes(name);
    perform ebbtide.enter_block(name, chain, at_height, case when note then 'on' else 'final' end);
    perform ebbtide.call_apply(name, chain, at_height);
    perform ebbtide.leave_block(name);
    return new_seq;
end $$;

-- Takes a projection with tracked tables back to its state after the block at `above` (-2: before everything).
create or replace function undo_blocks(
    chain bigint, name text, expected_seq bigint, above bigint, to_height bigint, to_hash text, to_redo_from bigint,
    out seq bigint, out restored bigint, out blocks bigint
)
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
begin
    update checkpoints k
    set seq = k.seq + 1, height = to_height, hash = to_hash, through_height = to_height,
        start_height = case when to_height is null then null else k.start_height end,
        journal_from = case when to_height is not null then
            case when k.journal_from > above + 1 then above + 1 else k.journal_from end end,
        redo_from = to_redo_from, deep_change = k.deep_change and to_redo_from is not null, updated_at = now()
    where k.chain_id = chain and k.projection = name and k.seq = expected_seq
    returning k.seq into undo_blocks.seq;
    undo_blocks.restored := restore_tables(name, chain, above);
    with gone as (
        delete from applied_blocks a where a.chain_id = chain and a.projection = name and a.height > above returning 1
    )
    select count(*) into undo_blocks.blocks from gone;
    delete from rejected_events r where r.chain_id = chain and r.projection = name and r.height > above;
end $$;

-- `beside`: what stands stays, until replace_tables_by_built compares it with what was built from here on.
create or replace function empty_projection(
    chain bigint, name text, expected_seq bigint, beside boolean, out seq bigint, out restored bigint, out blocks bigint
)
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
begin
    update checkpoints k
    set seq = k.seq + 1, height = null, hash = null, through_height = null, start_height = null, history_from = null,
        journal_from = null, redo_from = null, deep_change = false, apply_digest = null, updated_at = now()
    where k.chain_id = chain and k.projection = name and k.seq = expected_seq
    returning k.seq into empty_projection.seq;
    if beside then
        empty_projection.restored := 0;
        perform build_tables_beside(name, chain);
    else
        empty_projection.restored := empty_tables(name, chain);
    end if;
    with gone as (
        delete from applied_blocks a where a.chain_id = chain and a.projection = name returning 1
    )
    select count(*) into empty_projection.blocks from gone;
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
                  hint = format('select ebbtide.unregister_projection(%L) lets it begin anew.', register_projection.name);
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

-- One notice for a projection that was made anew: consumers read it again instead of following every change.
create or replace function note_rebuilt(chain bigint, name text, at_height bigint, at_hash text, why text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
begin
    delete from rebuilds r where r.chain_id = chain and r.projection = name;
    perform pg_notify('ebbtide_notices', jsonb_build_object('type', 'ebbtide.projection.rebuilt', 'chain',
        (select c.name from chains c where c.chain_id = chain), 'projection', name, 'height', at_height, 'hash', at_hash,
        'reason', why)::text);
end $$;

-- This text is applied when it changed: the triggers that were made by an earlier one are made anew at the next block.
update tracked_tables set shape = '';
