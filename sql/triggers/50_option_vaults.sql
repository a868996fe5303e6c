-- Option vaults: what is told when their rows change, and what follows from a change of the registry.
--
-- A channel for each kind of row. A notification is a doorbell with a name plate: {op, table, chain_id, key, height}
-- and, while there is room, the row, unless the setting `notifications` is "keys": LISTEN needs no right, so every role that
-- may connect to the database hears it. What is true is read from the tables. Rows that a reorganisation deletes or puts
-- back ring as any others; the height is the row's latest_block, of a deleted row the one it had.
--
-- One notification a statement and vault instead of one a row where a statement changes many: commits with
-- notifications queue up behind each other, and an auction's end changes every provider of a vault.

-- The payload, with the row if there is one and it fits. Postgres refuses 8000 bytes, and that would fail the whole block.
create or replace function vault_payload(bell jsonb, changed jsonb) returns text
language sql immutable parallel safe set search_path = ebbtide, pg_temp as $$
    select case when changed is not null and octet_length(whole::text) < 7900 then whole::text else bell::text end
    from (select bell || jsonb_build_object('row', changed) as whole) t
$$;

-- Arguments: the channel, then the columns that name a row (the vault first).
create or replace function vault_rows_changed() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare
    channel constant text := tg_argv[0];
    most_rows constant int := 200;
    with_rows constant boolean := not exists (
        select from projections p where p.name = 'option_vaults' and p.settings ->> 'notifications' = 'keys');
    -- What a contract said, as text: most clients read JSON numbers into 53 bits.
    amounts constant text[] := array(
        select attname::text from pg_attribute
        where attrelid = tg_relid and atttypid = 'numeric'::regtype and attnum > 0 and not attisdropped
        order by attnum);
    key_columns text[] := '{}';
    changed jsonb[];
begin
    for n in 1 .. tg_nargs - 1 loop
        key_columns := key_columns || tg_argv[n];
    end loop;
    -- Each branch is planned only where its transition table exists.
    if tg_op = 'INSERT' then
        changed := array(select to_jsonb(n) from new_rows n);
    elsif tg_op = 'DELETE' then
        changed := array(select to_jsonb(o) from old_rows o);
    else
        changed := array(select to_jsonb(n) from new_rows n except all select to_jsonb(o) from old_rows o);
    end if;
    if cardinality(changed) > most_rows then
        perform tell(channel, jsonb_build_object(
            'op', lower(tg_op), 'table', tg_table_name, 'chain_id', r -> 'chain_id',
            'key', jsonb_build_object(key_columns[1], r -> key_columns[1]),
            'height', max((r ->> 'latest_block')::bigint), 'rows', count(*))::text)
        from unnest(changed) r
        group by r -> 'chain_id', r -> key_columns[1];
        return null;
    end if;
    perform tell(channel, vault_payload(
        jsonb_build_object(
            'op', lower(tg_op), 'table', tg_table_name, 'chain_id', r -> 'chain_id',
            'key', (select jsonb_object_agg(c, r ->> c) from unnest(key_columns) c), 'height', r -> 'latest_block'),
        case when with_rows then r || (select jsonb_object_agg(a, r ->> a) from unnest(amounts) a) end))
    from unnest(changed) r;
    return null;
end $$;

-- A round's way through its states, in either direction; from nothing when it is deployed, to nothing when its
-- deployment is taken back.
create or replace function round_state_changed() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare
    channel constant text := 'state_transition';
    most_rows constant int := 200;
    moved jsonb[];
begin
    if tg_op = 'INSERT' then
        moved := array(select to_jsonb(n) || jsonb_build_object('from', null, 'to', n.state) from new_rows n);
    elsif tg_op = 'DELETE' then
        moved := array(select to_jsonb(o) || jsonb_build_object('from', o.state, 'to', null) from old_rows o);
    else
        moved := array(
            select to_jsonb(n) || jsonb_build_object('from', o.state, 'to', n.state)
            from new_rows n
            join old_rows o using (chain_id, address)
            where o.state is distinct from n.state);
    end if;
    if cardinality(moved) > most_rows then
        perform tell(channel, jsonb_build_object(
            'op', lower(tg_op), 'table', tg_table_name, 'chain_id', r -> 'chain_id', 'vault', r -> 'vault_address',
            'height', max((r ->> 'latest_block')::bigint), 'rows', count(*))::text)
        from unnest(moved) r
        group by r -> 'chain_id', r -> 'vault_address';
        return null;
    end if;
    perform tell(channel, jsonb_build_object(
        'op', lower(tg_op), 'table', tg_table_name, 'chain_id', r -> 'chain_id', 'vault', r -> 'vault_address',
        'round_id', r ->> 'round_id', 'round', r -> 'address', 'from', r -> 'from', 'to', r -> 'to',
        'height', r -> 'latest_block')::text)
    from unnest(moved) r;
    return null;
end $$;

do $$
declare
    t record;
begin
    for t in
        select * from (values
            ('vaults', 'vault_update', '''address'''),
            ('liquidity_providers', 'lp_row_update', '''vault_address'', ''address'''),
            ('queued_liquidity', 'lp_row_update', '''vault_address'', ''round_address'', ''address'''),
            ('option_rounds', 'or_update', '''vault_address'', ''round_id'', ''address'''),
            ('option_buyers', 'ob_update', '''vault_address'', ''round_address'', ''address'''),
            ('option_bids', 'bids_update', '''vault_address'', ''round_address'', ''bid_id''')
        ) v (name, channel, keys)
    loop
        execute format('create or replace trigger told_insert after insert on %I referencing new table as new_rows
            for each statement execute function vault_rows_changed(%L, %s)', t.name, t.channel, t.keys);
        execute format('create or replace trigger told_update after update on %I
            referencing old table as old_rows new table as new_rows
            for each statement execute function vault_rows_changed(%L, %s)', t.name, t.channel, t.keys);
        execute format('create or replace trigger told_delete after delete on %I referencing old table as old_rows
            for each statement execute function vault_rows_changed(%L, %s)', t.name, t.channel, t.keys);
    end loop;
end $$;
create or replace trigger told_state_insert after insert on option_rounds referencing new table as new_rows
    for each statement execute function round_state_changed();
create or replace trigger told_state_update after update on option_rounds
    referencing old table as old_rows new table as new_rows
    for each statement execute function round_state_changed();
create or replace trigger told_state_delete after delete on option_rounds referencing old table as old_rows
    for each statement execute function round_state_changed();

-- People type addresses as they find them: with capitals, with leading zeros. An event's emitter has neither.
create or replace function vault_registered_as_typed() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    new.address := regexp_replace(lower(trim(new.address)), '^0x0*(?=[0-9a-f])', '0x');
    new.layout := lower(new.layout);
    -- What the source has stored of it begins where it was told to begin, and is of the vault that the row named.
    if tg_op = 'UPDATE' and (
        new.from_height is distinct from old.from_height and new.indexed_through is not distinct from old.indexed_through
        or (new.chain_id, new.address) <> (old.chain_id, old.address)) then
        new.indexed_through := null;
        new.caught_up := false;
    end if;
    return new;
end $$;

-- A vault came, went or is read in another way: the projection starts again where its first event may be. Set even
-- where nothing was applied yet, so that a block in hand, which has not seen this row, is not committed.
create or replace function vault_registry_touched(chain bigint, lowest_height bigint) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    insert into checkpoints (chain_id, projection)
    select chain, p.name from projections p where p.name = 'option_vaults'
    on conflict do nothing;
    update checkpoints k
    set redo_from = least(k.redo_from, lowest_height)
    where k.chain_id = chain and k.projection = 'option_vaults';
    -- For the source: there is something to fetch.
    perform tell('ebbtide_blocks', chain::text);
end $$;

create or replace function vault_registry_changed() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    -- A chain that is dropped takes its checkpoints along.
    if is_being_dropped(coalesce(old.chain_id, new.chain_id)) then
        return null;
    end if;
    if tg_op <> 'INSERT' then
        perform vault_registry_touched(old.chain_id, coalesce(old.from_height, 0));
    end if;
    if tg_op <> 'DELETE' then
        if new.caught_up or exists (select from chains c where c.chain_id = new.chain_id and not c.listed_only) then
            perform vault_registry_touched(new.chain_id, coalesce(new.from_height, 0));
        else
            -- Nothing follows from it yet: the source brings its history first.
            perform tell('ebbtide_blocks', new.chain_id::text);
        end if;
    end if;
    return null;
end $$;

-- Blocks went: what comes in their place has to be read for every vault again.
create or replace function vault_blocks_deleted() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    update vault_registry g
    set indexed_through = nullif(o.lowest - 1, -1)
    from (select chain_id, min(height) as lowest from old_rows group by chain_id) o
    where g.chain_id = o.chain_id and g.indexed_through >= o.lowest;
    return null;
end $$;

create or replace trigger as_typed before insert or update on vault_registry
    for each row execute function vault_registered_as_typed();
create or replace trigger registered after insert or delete on vault_registry
    for each row execute function vault_registry_changed();
create or replace trigger changed after update on vault_registry for each row
    when (old.chain_id <> new.chain_id or old.address <> new.address or old.layout <> new.layout
          or old.from_height is distinct from new.from_height or old.caught_up <> new.caught_up)
    execute function vault_registry_changed();
create or replace trigger truncated before truncate on vault_registry
    for each statement execute function refuse_truncate();
create or replace trigger vaults_deleted after delete on blocks referencing old table as old_rows
    for each statement execute function vault_blocks_deleted();
