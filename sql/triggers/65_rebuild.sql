-- The program's own projections built again beside their live tables: readers keep the old state until the commit, and only
-- what differs is written, so neither the tables nor their indexes grow by a copy of themselves, and a listener hears of
-- what changed and of nothing else (docs/decisions/010).

-- Empty tables of this transaction under the names of the live ones. pg_temp comes first in every search path that does not
-- name it, so statements prepared from here on write to these. Indexes that no apply needs are not made.
create or replace function build_beside() returns void
language plpgsql set client_min_messages = warning set search_path = ebbtide, pg_temp as $$
begin
    create temp table balances (
        like ebbtide.balances including defaults including identity including generated,
        primary key (chain_id, token, address)
    ) with (fillfactor = 70) on commit drop;
    create temp table balance_history (like ebbtide.balance_history including defaults) on commit drop;
    create temp table token_totals (like ebbtide.token_totals including all) on commit drop;
    create temp table differing (token text collate "C", address text collate "C", amount numeric) on commit drop;
end $$;

-- Makes the live tables of one chain what was built. Returns how many balances differed.
create or replace function replace_by_built(chain bigint) returns bigint
language plpgsql
set search_path = ebbtide, pg_temp
set enable_nestloop = on set enable_seqscan = on set enable_hashjoin = on set enable_mergejoin = on
set plan_cache_mode = auto as $$
#variable_conflict use_variable
declare
    changed bigint;
    differed bigint := 0;
begin
    analyze pg_temp.balances;
    analyze pg_temp.balance_history;
    with differs as (
        delete from ebbtide.balances b
        where b.chain_id = chain
          and not exists (select from pg_temp.balances n
                          where n.chain_id = b.chain_id and n.token = b.token and n.address = b.address)
        returning b.token, b.address
    )
    insert into pg_temp.differing select d.token, d.address, null from differs d;
    get diagnostics changed = row_count;
    differed := differed + changed;
    with differs as (
        update ebbtide.balances b
        set amount = n.amount, height = n.height, prev_height = n.prev_height
        from pg_temp.balances n
        where b.chain_id = chain and n.chain_id = b.chain_id and n.token = b.token and n.address = b.address
          and (b.amount, b.height) is distinct from (n.amount, n.height)
        returning b.token, b.address, b.amount
    )
    insert into pg_temp.differing select d.token, d.address, d.amount from differs d;
    get diagnostics changed = row_count;
    differed := differed + changed;
    with differs as (
        insert into ebbtide.balances (chain_id, token, address, amount, height, prev_height)
        select n.chain_id, n.token, n.address, n.amount, n.height, n.prev_height
        from pg_temp.balances n
        where not exists (select from ebbtide.balances b
                          where b.chain_id = n.chain_id and b.token = n.token and b.address = n.address)
        order by n.token, n.address
        returning token, address, amount
    )
    insert into pg_temp.differing select d.token, d.address, d.amount from differs d;
    get diagnostics changed = row_count;
    differed := differed + changed;

    delete from ebbtide.token_totals t
    where t.chain_id = chain
      and not exists (select from pg_temp.token_totals n where n.chain_id = t.chain_id and n.token = t.token);
    insert into ebbtide.token_totals as t (chain_id, token, total)
    select n.chain_id, n.token, n.total from pg_temp.token_totals n
    on conflict (chain_id, token) do update set total = excluded.total where t.total <> excluded.total;

    -- A balance that stood before keeps its number, which its history is known by; what was built has numbers of its own.
    create temp table built_history on commit drop as
    select b.balance_id, h.height, h.prev_height, h.chain_id, h.delta, h.balance_after
    from pg_temp.balance_history h
    join pg_temp.balances n on n.balance_id = h.balance_id
    join ebbtide.balances b on b.chain_id = n.chain_id and b.token = n.token and b.address = n.address;
    analyze pg_temp.built_history;
    delete from ebbtide.balance_history h
    where h.chain_id = chain
      and not exists (select from pg_temp.built_history n
                      where n.balance_id = h.balance_id and n.height = h.height and n.delta = h.delta
                        and n.balance_after = h.balance_after and n.prev_height is not distinct from h.prev_height);
    insert into ebbtide.balance_history (balance_id, height, prev_height, chain_id, delta, balance_after)
    select n.balance_id, n.height, n.prev_height, n.chain_id, n.delta, n.balance_after
    from pg_temp.built_history n
    where not exists (select from ebbtide.balance_history h where h.balance_id = n.balance_id and h.height = n.height)
    order by n.height, n.balance_id;
    update ebbtide.applied_blocks a
    set ids = n.ids
    from (select height, array_agg(balance_id) as ids from pg_temp.built_history group by height) n
    where a.chain_id = chain and a.projection = 'token_balances' and a.height = n.height;
    return differed;
end $$;

-- The same for tracked tables: empty copies under their names. Undo is not recorded in these, so only final blocks are
-- applied in them; what undo there is goes, and comes again with the blocks above.
create or replace function build_tables_beside(name text, chain bigint) returns void
language plpgsql set client_min_messages = warning set search_path = ebbtide, pg_temp as $$
declare t record;
begin
    perform check_shapes(name);
    for t in select k.id, k.relation, c.relname
             from tracked_tables k join pg_class c on c.oid = to_regclass(k.relation)
             where k.projection = name order by k.id loop
        execute format('delete from undo_%s where chain_id = $1', t.id) using chain;
        execute format('create temp table %I (like %s including all) on commit drop', t.relname, t.relation);
    end loop;
end $$;

-- Makes the live tables of a projection what was built. Rows are compared as they are stored: equal is not enough.
create or replace function replace_tables_by_built(name text, chain bigint) returns bigint
language plpgsql
set search_path = ebbtide, pg_temp
set enable_nestloop = on set enable_seqscan = on set enable_hashjoin = on set enable_mergejoin = on as $$
declare
    t record;
    step text;
    changed bigint;
    differed bigint := 0;
    same_key text;
    live_values text;
    built_values text;
    names text;
begin
    perform set_config('ebbtide.projection', name, true), set_config('ebbtide.tracking', 'restoring', true);
    set constraints all deferred;
    foreach step in array array['delete', 'update', 'insert'] loop
        for t in select k.*, c.relname from tracked_tables k join pg_class c on c.oid = to_regclass(k.relation)
                 where k.projection = name order by k.id loop
            same_key := keys_equal(to_regclass(t.relation), 'r.', 'n.');
            select string_agg(format('%I', value ->> 0), ', ' order by key::int),
                string_agg(format('r.%I', value ->> 0), ', ' order by key::int),
                string_agg(format('n.%I', value ->> 0), ', ' order by key::int)
            into names, live_values, built_values
            from jsonb_each(t.columns) where value ->> 2 = '';
            if step = 'delete' then
                execute format('analyze pg_temp.%I', t.relname);
                execute format('delete from %s r where r.chain_id = $1
                    and not exists (select from pg_temp.%I n where %s)', t.relation, t.relname, same_key) using chain;
            elsif step = 'update' then
                execute format('update %s r set (%s) = row(%s) from pg_temp.%I n where r.chain_id = $1 and %s
                    and row(%s)::record *<> row(%s)::record', t.relation, names, built_values, t.relname, same_key, live_values, built_values)
                using chain;
            else
                execute format('insert into %s (%s) overriding system value select %s from pg_temp.%I n
                    where not exists (select from %s r where %s)', t.relation, names, built_values, t.relname, t.relation, same_key);
            end if;
            get diagnostics changed = row_count;
            differed := differed + changed;
        end loop;
    end loop;
    set constraints all immediate;
    perform set_config('ebbtide.settled', 'on', true);
    for t in select c.relname from tracked_tables k join pg_class c on c.oid = to_regclass(k.relation) where k.projection = name loop
        execute format('drop table pg_temp.%I', t.relname);
    end loop;
    perform set_config('ebbtide.projection', '', true), set_config('ebbtide.tracking', '', true);
    return differed;
end $$;
