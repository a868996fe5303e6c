-- What is told of projections with tables of their own: the rows that a block changed, from the undo that is kept of it anyway, and
-- what its function says by `emit`.

-- A row as it is told: bigint and numeric as text, since JSON's readers make floats of numbers.
create or replace function row_fields(columns jsonb, prefix text) returns text
language sql stable set search_path = ebbtide, pg_temp as $$
    select 'pg_catalog.jsonb_build_object(' || string_agg(format('%L, %s', c.value ->> 0,
            case when c.value ->> 1 ~ '^(bigint|numeric)' then field.name || '::text' else field.name end), ', ' order by c.key::integer) || ')'
    from jsonb_each(columns) c
    cross join lateral (
        select case when row_fields.prefix = 'u' then format('u.%I', 'c' || c.key) else format('n.%I', c.value ->> 0) end as name
    ) field;
$$;

-- The rows of a projection that the block at this height changed, each as [table, operation, key as text, key, old, new].
create or replace function changed_rows(name text, chain bigint, at_height bigint) returns jsonb
language plpgsql set search_path = ebbtide, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off
set timezone = 'UTC' set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1 as $$
declare
    t record;
    of_table jsonb;
    keys jsonb;
    told jsonb := '[]';
begin
    for t in select k.*, to_regclass(k.relation) as rel from tracked_tables k where k.projection = name order by k.id loop
        keys := (select jsonb_object_agg(c, t.columns -> c::text) from unnest(t.keys) c);
        execute format($q$
            select jsonb_agg(jsonb_build_array(%1$L, case when not c.existed then 'insert' when c.new is null then 'delete' else 'update' end,
                c.key_text, c.key, c.old, c.new) order by c.key_text)
            from (
                select u.existed, %2$s as key, case when u.existed then %3$s end as old,
                    case when n.* is not null then %4$s end as new, concat_ws(',', %5$s) as key_text
                from undo_%6$s u
                left join %7$s n on %8$s
                where u.chain_id = $1 and u.height = $2
            ) c
            where c.old is distinct from c.new$q$,
            relation_name(t.rel), row_fields(keys, 'u'), row_fields(t.columns, 'u'), row_fields(t.columns, 'n'),
            (select string_agg(format('u.%I', 'c' || k), ', ' order by o) from unnest(t.keys) with ordinality p (k, o)),
            t.id, t.relation, keys_equal(t.rel, 'n.', 'u.c'))
        into of_table using chain, at_height;
        told := told || coalesce(of_table, '[]');
    end loop;
    return told;
end $$;

-- The rows that blocks above a height changed, as they were before: for those sinks that were not told of all these blocks. Each as
-- changed_rows has it, without what it is by now.
create or replace function rows_before(name text, chain bigint, above bigint) returns jsonb
language plpgsql set search_path = ebbtide, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off
set timezone = 'UTC' set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1 as $$
declare
    t record;
    of_table jsonb;
    told jsonb := '[]';
begin
    for t in select k.*, to_regclass(k.relation) as rel,
                 (select string_agg(format('u.%I', 'c' || c), ', ' order by o) from unnest(k.keys) with ordinality p (c, o)) as key_columns
             from tracked_tables k where k.projection = name order by k.id loop
        execute format($q$
            select jsonb_agg(jsonb_build_array(%L, case when f.existed then 'update' else 'delete' end, f.key_text, f.key, null, f.image)
                order by f.key_text)
            from (
                select distinct on (%2$s) u.existed, concat_ws(',', %2$s) as key_text, %3$s as key,
                    case when u.existed then %4$s end as image
                from undo_%5$s u
                where u.chain_id = $1 and u.height > $2
                order by %2$s, u.height
            ) f$q$,
            relation_name(t.rel), t.key_columns, row_fields((select jsonb_object_agg(c, t.columns -> c::text) from unnest(t.keys) c), 'u'),
            row_fields(t.columns, 'u'), t.id)
        into of_table using chain, above;
        told := told || coalesce(of_table, '[]');
    end loop;
    return told;
end $$;

-- A query for all rows that a projection's tables have on the chain $2, as changed_rows tells them.
create or replace function rows_to_tell(name text) returns text
language sql stable set search_path = ebbtide, pg_temp as $$
    select 'select row_number() over (order by r.told ->> 0, r.told ->> 2), r.told from (' || string_agg(format(
        'select jsonb_build_array(%L, ''insert'', concat_ws('','', %s), %s, null, %s) as told from %s n %s',
        relation_name(to_regclass(t.relation)),
        (select string_agg(format('n.%I', t.columns -> k::text ->> 0), ', ' order by o) from unnest(t.keys) with ordinality p (k, o)),
        row_fields((select jsonb_object_agg(k, t.columns -> k::text) from unnest(t.keys) k), 'n'), row_fields(t.columns, 'n'), t.relation,
        case when t.by_chain then 'where n.chain_id = $2' else '' end), ' union all ') || ') r'
    from tracked_tables t
    where t.projection = name;
$$;

-- What the block that was just applied has to say, where somebody wants to hear. Its undo is there.
create or replace function tell_block(name text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    chain constant bigint := current_setting('ebbtide.chain_id');
    at_height constant bigint := current_setting('ebbtide.height');
    emitted constant jsonb := '[' || coalesce(current_setting('ebbtide.emitted', true), '') || ']';
    k checkpoints;
    rows jsonb := '[]';
    longest integer;
begin
    select * into k from checkpoints p where p.chain_id = chain and p.projection = name;
    if k.tells = 0 then
        return;
    end if;
    if k.tells & 16 > 0 then
        rows := changed_rows(name, chain, at_height);
    end if;
    if rows = '[]' and emitted = '[]' then
        return;
    end if;
    select max(length(v::text)) into longest from jsonb_array_elements(rows || emitted) v;
    if longest > 1000000 then
        raise exception 'block % of projection % has a notice of % bytes; a notice has 1000000 bytes at most', at_height, name, longest
            using errcode = 'program_limit_exceeded', constraint = 'notices_have_1000000_bytes_at_most',
                  hint = 'Tell less by emit, keep large values out of the table, or have no sink want its rows.';
    end if;
    insert into outbox (chain_id, projection, seq, mark, height, hash, heights, hashes, parents, times, said)
    select chain, name, k.seq, mark_at(chain, name, b.hash), b.height, b.hash, array[b.height], array[b.hash], array[b.parent_hash],
        array[b.time], jsonb_build_object('blocks', jsonb_build_array(jsonb_build_array('[]'::jsonb, '[]'::jsonb, rows, emitted)))::text
    from blocks b
    where b.chain_id = chain and b.height = at_height;
end $$;

-- For apply functions: a notice of one's own, told with the block and taken back with it. Without a sink that wants it nothing is.
create or replace function emit(type text, key text, data jsonb) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    said constant text := nullif(current_setting('ebbtide.emitted', true), '');
begin
    if coalesce(current_setting('ebbtide.projection', true), '') = '' then
        raise exception 'emit was called outside of a block'
            using errcode = 'object_not_in_prerequisite_state', constraint = 'emit_is_called_by_apply_functions',
                  hint = 'Call it in the function of a projection (create_projection): what it says is taken back with its block.';
    end if;
    if emit.type is null or emit.type !~ '^[A-Za-z0-9_.-]{1,100}$' or emit.type ~ '^ebbtide\.' or emit.type ~ '\.retracted$' then
        raise exception 'a type of notice is 1 to 100 letters, digits, dots, dashes and underscores, and neither begins with ebbtide. nor ends in .retracted: %',
            emit.type
            using errcode = 'invalid_parameter_value', constraint = 'types_are_1_to_100_plain_characters';
    end if;
    if emit.key is null or length(emit.key) not between 1 and 1000 or jsonb_typeof(emit.data) is distinct from 'object' then
        raise exception 'emit takes a type, a key of 1 to 1000 characters and an object'
            using errcode = 'invalid_parameter_value', constraint = 'emit_takes_a_key_and_an_object';
    end if;
    if current_setting('ebbtide.tracking', true) = 'on' then
        perform set_config('ebbtide.emitted', concat_ws(',', said, jsonb_build_array(emit.type, emit.key, emit.data)), true);
    end if;
end $$;
comment on function emit is 'Called in an apply function: tells sinks so with the block, and takes it back with it.';
