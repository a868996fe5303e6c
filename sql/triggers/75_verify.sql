-- What `ebbtide verify` needs of tracked tables: copies of them, their differences. All of it runs in a transaction that is rolled back.

-- The columns of a table that two runs of the same blocks must agree on, as a list to select. A sequence goes on, so what
-- it gave is another number each time; `with_keys` keeps such a column where it is the primary key.
create or replace function compared_columns(given regclass, with_keys boolean) returns text
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return coalesce((
        select string_agg(format(case when a.atttypid = any ('{json,xml,point,line,lseg,box,path,polygon,circle}'::regtype[])
                                      -- Of no type that has an equality.
                                      then '%1$I::text as %1$I' else '%1$I' end, a.attname), ', ' order by a.attnum)
        from pg_attribute a
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum and a.attgenerated = ''
        where a.attrelid = given and a.attnum > 0 and not a.attisdropped
          and (a.attidentity = '' and coalesce(pg_get_expr(d.adbin, d.adrelid) !~ '^nextval\(', true)
               or with_keys and exists (select from pg_index i where i.indrelid = given and i.indisprimary
                                        and a.attnum = any (i.indkey::smallint[])))
    ), 'true as stands');
end $$;

-- Keeps the rows of one chain, of all tables of a projection, in temporary tables of this session.
create or replace function copy_tables(name text, chain bigint, tag text, with_keys boolean) returns bigint
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    t record;
    copied bigint;
    total bigint := 0;
begin
    for t in select k.*, to_regclass(k.relation) as rel from tracked_tables k where k.projection = name order by k.id loop
        execute format('drop table if exists pg_temp.%I', format('ebbtide_%s_%s', tag, t.id));
        execute format('create temp table %I as select %s from %s %s', format('ebbtide_%s_%s', tag, t.id),
            compared_columns(t.rel, with_keys), t.relation, case when t.by_chain then format('where chain_id = %s', chain) else '' end);
        get diagnostics copied = row_count;
        total := total + copied;
    end loop;
    return total;
end $$;

-- The same for their undo. Of a row that did not exist only the key means something.
create or replace function copy_undo(name text, chain bigint, tag text) returns bigint
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    t record;
    wanted text;
    copied bigint;
    total bigint := 0;
begin
    for t in select k.*, to_regclass(k.relation) as rel from tracked_tables k where k.projection = name order by k.id loop
        select string_agg(format(case when a.attnum = any (t.keys) then ', %1$I%3$s as %2$I'
                                      else ', case when existed then %1$I%3$s end as %2$I' end, 'c' || a.attnum, a.attname,
                                 case when a.atttypid = any ('{json,xml,point,line,lseg,box,path,polygon,circle}'::regtype[])
                                      then '::text' else '' end), '' order by a.attnum)
        into wanted
        from pg_attribute a
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum and a.attgenerated = ''
        where a.attrelid = t.rel and t.columns ? a.attnum::text and a.attidentity = ''
          and coalesce(pg_get_expr(d.adbin, d.adrelid) !~ '^nextval\(', true);
        execute format('drop table if exists pg_temp.%I', format('ebbtide_%s_%s', tag, t.id));
        execute format('create temp table %I as select height as "undo of height", existed as "had a row"%s from undo_%s where chain_id = %s',
            format('ebbtide_%s_%s', tag, t.id), coalesce(wanted, ''), t.id, chain);
        get diagnostics copied = row_count;
        total := total + copied;
    end loop;
    return total;
end $$;

-- What only one of two copies holds, as multisets: at most so many rows of each table and side, and how many there are.
create or replace function compare_copies(name text, one text, other text, most bigint)
returns table (relation text, in_one boolean, differing text, total bigint)
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    t record;
    side boolean;
begin
    for t in select k.id, k.relation as named from tracked_tables k where k.projection = name order by k.id loop
        foreach side in array array[true, false] loop
            return query execute format(
                'select %L::text, %L::boolean, to_jsonb(d)::text as found, count(*) over ()
                 from (table pg_temp.%I except all table pg_temp.%I) d order by found limit %s',
                t.named, side, format('ebbtide_%s_%s', case when side then one else other end, t.id),
                format('ebbtide_%s_%s', case when side then other else one end, t.id), most);
        end loop;
    end loop;
end $$;

drop function if exists try_block(bigint, text, bigint, text, bigint, text, boolean, boolean);

-- The rows of copies as sorted text, by table.
create or replace function dump_copies(name text, tag text) returns table (relation text, rows text[])
language plpgsql set search_path = ebbtide, pg_temp as $$
declare t record;
begin
    for t in select k.id, k.relation as named from tracked_tables k where k.projection = name order by k.id loop
        return query execute format(
            'select %L::text, coalesce(array_agg(to_jsonb(d)::text order by to_jsonb(d)::text collate "C"), ''{}'') from pg_temp.%I d',
            t.named, format('ebbtide_%s_%s', tag, t.id));
    end loop;
end $$;

-- Empty temporary tables under the names of a projection's: what is written to these names from here on is written to them.
create or replace function make_temporary(name text) returns void
language plpgsql set client_min_messages = warning set search_path = ebbtide, pg_temp as $$
declare t record;
begin
    for t in select k.relation, c.relname from tracked_tables k join pg_class c on c.oid = to_regclass(k.relation)
             where k.projection = name order by k.id loop
        execute format('create temp table %I (like %s including all)', t.relname, t.relation);
    end loop;
end $$;

-- The tables of a projection against temporary tables of their names, as compare_copies does with copies.
create or replace function compare_with_temporary(name text, chain bigint, most bigint)
returns table (relation text, in_one boolean, differing text, total bigint)
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    t record;
    side boolean;
    stored text;
    fresh text;
begin
    for t in
        select k.relation as named, c.relname, compared_columns(c.oid, false) as columns
        from tracked_tables k join pg_class c on c.oid = to_regclass(k.relation)
        where k.projection = name order by k.id
    loop
        stored := format('select %s from %s where chain_id = %s', t.columns, t.named, chain);
        fresh := format('select %s from pg_temp.%I', t.columns, t.relname);
        foreach side in array array[true, false] loop
            return query execute format(
                'select %L::text, %L::boolean, to_jsonb(d)::text as found, count(*) over ()
                 from (%s except all %s) d order by found limit %s',
                t.named, side, case when side then stored else fresh end, case when side then fresh else stored end, most);
        end loop;
    end loop;
end $$;

-- Rows in those temporary tables.
create or replace function count_temporary(name text) returns bigint
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    t record;
    counted bigint;
    total bigint := 0;
begin
    for t in select c.relname from tracked_tables k join pg_class c on c.oid = to_regclass(k.relation) where k.projection = name loop
        execute format('select count(*) from pg_temp.%I', t.relname) into counted;
        total := total + counted;
    end loop;
    return total;
end $$;
