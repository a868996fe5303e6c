-- What people call from psql. Errors carry a fixed word as their constraint name.

create or replace function chain_named(chain text) returns bigint
language plpgsql stable set search_path = ebbtide, pg_temp as $$
declare found_id bigint;
begin
    select c.chain_id into found_id from chains c where c.name = chain;
    if not found then
        raise exception 'there is no chain named %', chain
            using errcode = 'no_data_found', constraint = 'unknown_chain',
                  hint = 'select name from chains lists them; insert into chains (name, kind) values (...) makes one.';
    end if;
    return found_id;
end $$;

-- 0x hex in lower case; any other text as it is. These two are unfolded into the statements that call them, so they bring
-- no search path of their own and name everything with its schema.
create or replace function canonical(given text) returns text
language sql immutable parallel safe as $$
    select case when given operator(pg_catalog.~) '^0[xX][0-9a-fA-F]*$' then pg_catalog.lower(given) else given end;
$$;

-- The same on a chain of some kind: the felts of Starknet have no leading zeros, or one account would be two.
create or replace function canonical(given text, of_kind text) returns text
language sql immutable parallel safe as $$
    select case when of_kind operator(pg_catalog.=) 'starknet' and given operator(pg_catalog.~) '^0[xX]0[0-9a-fA-F]*$'
        then pg_catalog.regexp_replace(pg_catalog.lower(given), '^0x0*(?=[0-9a-f])', '0x') else ebbtide.canonical(given) end;
$$;

-- A list of objects keyed by column names. Another key is an error: "from" for from_address would make a mint.
create or replace function check_keys(list jsonb, what text, known text[], needed text[]) returns void
language plpgsql immutable set search_path = ebbtide, pg_temp as $$
declare item jsonb; key text;
begin
    if jsonb_typeof(list) <> 'array' then
        raise exception '% must be a JSON array of objects, not %', what, jsonb_typeof(list)
            using errcode = 'invalid_parameter_value', constraint = 'put_block_takes_arrays_of_objects';
    end if;
    for item in select * from jsonb_array_elements(list) loop
        if jsonb_typeof(item) <> 'object' then
            raise exception '% must hold objects, not %', what, item
                using errcode = 'invalid_parameter_value', constraint = 'put_block_takes_arrays_of_objects';
        end if;
        for key in select jsonb_object_keys(item) loop
            if key <> all (known) then
                raise exception '% have no column %', what, key
                    using errcode = 'undefined_column', constraint = 'put_block_knows_the_column',
                          hint = 'Known are ' || array_to_string(known, ', ') || '.';
            end if;
        end loop;
        foreach key in array needed loop
            if item ->> key is null then
                raise exception '% need %: %', what, key, item
                    using errcode = 'not_null_violation', constraint = 'put_block_needs_the_column';
            end if;
        end loop;
    end loop;
end $$;

-- A whole number of base units, given as a JSON number or as text; what numeric(78,0) would round is refused.
create or replace function whole(given text) returns numeric
language plpgsql immutable set search_path = ebbtide, pg_temp as $$
declare amount numeric := given::numeric;
begin
    if amount <> trunc(amount) then
        raise exception 'amount % is not a whole number of base units', given
            using errcode = 'check_violation', constraint = 'token_events_amount_is_a_whole_number';
    end if;
    return amount;
end $$;

create or replace function given_transactions(list jsonb)
returns table (tx_index bigint, hash text, success boolean)
language sql immutable set search_path = ebbtide, pg_temp as $$
    select tx_index, canonical(hash), coalesce(success, true)
    from jsonb_to_recordset(list) as t(tx_index bigint, hash text, success boolean);
$$;

drop function if exists given_token_events(jsonb);
create or replace function given_token_events(list jsonb, of_kind text)
returns table (tx_index bigint, event_index bigint, token text, from_address text, to_address text, amount numeric)
language sql immutable set search_path = ebbtide, pg_temp as $$
    select tx_index, event_index, canonical(token, of_kind), canonical(from_address, of_kind),
        canonical(to_address, of_kind), whole(amount)
    from jsonb_to_recordset(list) as e(
        tx_index bigint, event_index bigint, token text, from_address text, to_address text, amount text);
$$;

drop function if exists given_events(jsonb);
create or replace function given_events(list jsonb, of_kind text)
returns table (tx_index bigint, event_index bigint, emitter text, name text, keys text[], data text[], attributes jsonb)
language sql immutable set search_path = ebbtide, pg_temp as $$
    select tx_index, event_index, canonical(emitter, of_kind), name,
        coalesce(keys, '{}'), coalesce(data, '{}'), coalesce(attributes, '{}')
    from jsonb_to_recordset(list) as e(
        tx_index bigint, event_index bigint, emitter text, name text, keys text[], data text[], attributes jsonb);
$$;

-- Whether the rows stored for a block are just the ones given.
create or replace function block_holds(
    cid bigint, at_height bigint, transactions jsonb, token_events jsonb, events jsonb
) returns boolean
language plpgsql stable set search_path = ebbtide, pg_temp set enable_seqscan = off as $$
declare
    its_kind constant text := (select c.kind from ebbtide.chains c where c.chain_id = cid);
begin
    return
        (select coalesce(jsonb_agg(to_jsonb(s) order by tx_index), '[]')
         from (select t.tx_index, t.hash, t.success
               from ebbtide.transactions t where t.chain_id = cid and t.height = at_height) s)
        = (select coalesce(jsonb_agg(to_jsonb(g) order by tx_index), '[]') from given_transactions(transactions) g)
    and (select coalesce(jsonb_agg(to_jsonb(s) order by tx_index, event_index), '[]')
         from (select e.tx_index, e.event_index, e.token, e.from_address, e.to_address, e.amount
               from ebbtide.token_events e where e.chain_id = cid and e.height = at_height) s)
        = (select coalesce(jsonb_agg(to_jsonb(g) order by tx_index, event_index), '[]')
           from given_token_events(token_events, its_kind) g)
    and (select coalesce(jsonb_agg(to_jsonb(s) order by tx_index, event_index), '[]')
         from (select e.tx_index, e.event_index, e.emitter, e.name, e.keys, e.data, e.attributes
               from ebbtide.events e where e.chain_id = cid and e.height = at_height) s)
        = (select coalesce(jsonb_agg(to_jsonb(g) order by tx_index, event_index), '[]') from given_events(events, its_kind) g);
end $$;

-- Refuses to go on where rows are stored that would count for a block to come: those of a block that was removed while its
-- trigger was off, or of none.
create or replace function refuse_left_over(cid bigint, from_height bigint, to_height bigint default null) returns void
language plpgsql stable set search_path = ebbtide, pg_temp set enable_seqscan = off as $$
declare
    up_to constant bigint := coalesce(to_height, 9223372036854775807);
    found_in text;
    found_at bigint;
begin
    select l.of_table, l.height into found_in, found_at
    from (
        (select 'token_events' as of_table, e.height from token_events e
         where e.chain_id = cid and e.height between from_height and up_to order by e.height limit 1)
        union all
        (select 'events', e.height from events e
         where e.chain_id = cid and e.height between from_height and up_to order by e.height limit 1)
        union all
        (select 'transactions', t.height from transactions t
         where t.chain_id = cid and t.height between from_height and up_to order by t.height limit 1)
    ) l
    limit 1;
    if found then
        raise exception 'blocks from height % on cannot be written to chain %: table % holds rows at height % already, without a block',
            from_height, (select c.name from chains c where c.chain_id = cid), found_in, found_at
            using errcode = 'integrity_constraint_violation', constraint = 'blocks_take_their_events_along',
                  hint = 'Their block was removed while the trigger of table blocks was off, or they were written ahead of it. '
                      '`ebbtide migrate` restores the trigger; then delete these rows.';
    end if;
end $$;

create or replace function put_block(
    chain text, height bigint, hash text, parent_hash text, "time" timestamptz default now(),
    transactions jsonb default '[]', token_events jsonb default '[]', events jsonb default '[]'
) returns text
language plpgsql security definer set search_path = ebbtide, pg_temp set enable_seqscan = off as $$
#variable_conflict use_column
declare
    cid bigint := chain_named(put_block.chain);
    new_hash text := canonical(put_block.hash);
    new_parent text := canonical(put_block.parent_hash);
    its_kind constant text := (select c.kind from ebbtide.chains c where c.chain_id = cid);
    old ebbtide.blocks%rowtype;
    outcome text := 'inserted';
begin
    perform check_keys(put_block.transactions, 'transactions', '{tx_index,hash,success}', '{tx_index,hash}');
    perform check_keys(put_block.token_events, 'token_events',
        '{tx_index,event_index,token,from_address,to_address,amount}', '{tx_index,event_index,token,amount}');
    perform check_keys(put_block.events, 'events',
        '{tx_index,event_index,emitter,name,keys,data,attributes}', '{tx_index,event_index,emitter,name}');
    -- The writer's turn, before anything is compared.
    update ebbtide.chains c set writes = c.writes + 1 where c.chain_id = cid;
    select b.* into old from ebbtide.blocks b where b.chain_id = cid and b.height = put_block.height;
    if found then
        if old.hash = new_hash then
            if old.parent_hash = new_parent
                and block_holds(cid, put_block.height, put_block.transactions, put_block.token_events, put_block.events)
            then
                return 'unchanged';
            end if;
            raise exception 'block % of chain % (%) is stored with another parent or other events',
                put_block.height, put_block.chain, new_hash
                using errcode = 'integrity_constraint_violation', constraint = 'block_differs',
                      hint = 'A block with other content has another hash; to correct this one, update its rows.';
        end if;
        delete from ebbtide.blocks b where b.chain_id = cid and b.height >= put_block.height;
        outcome := 'replaced';
    end if;
    perform refuse_left_over(cid, put_block.height, put_block.height);
    insert into ebbtide.transactions (chain_id, height, tx_index, hash, success)
    select cid, put_block.height, t.* from given_transactions(put_block.transactions) t;
    insert into ebbtide.token_events (chain_id, height, tx_index, event_index, token, from_address, to_address, amount)
    select cid, put_block.height, e.* from given_token_events(put_block.token_events, its_kind) e;
    insert into ebbtide.events (chain_id, height, tx_index, event_index, emitter, name, keys, data, attributes)
    select cid, put_block.height, e.* from given_events(put_block.events, its_kind) e;
    insert into ebbtide.blocks (chain_id, height, hash, parent_hash, time)
    values (cid, put_block.height, new_hash, new_parent, put_block."time");
    return outcome;
end $$;
comment on function put_block is 'Writes one block with its events; another hash at its height replaces that block and everything above.';

create or replace function drop_blocks(chain text, from_height bigint) returns bigint
language plpgsql security definer set search_path = ebbtide, pg_temp set enable_seqscan = off as $$
declare
    cid bigint := chain_named(chain);
    dropped bigint;
begin
    update chains c set writes = c.writes + 1 where c.chain_id = cid;
    delete from blocks b where b.chain_id = cid and b.height >= from_height;
    get diagnostics dropped = row_count;
    return dropped;
end $$;
comment on function drop_blocks is 'The chain got shorter: archives and removes the blocks from this height on; returns how many.';

create or replace function drop_chain(chain text) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare
    ledger constant text := coalesce(current_setting('ebbtide.ledger', true), '');
    cid bigint := chain_named(chain);
    p record;
    t record;
begin
    perform set_config('ebbtide.ledger', 'on', true);
    -- A block in hand holds its checkpoint: once it is ours, nothing more is applied.
    update chains c set writes = c.writes + 1 where c.chain_id = cid;
    perform from checkpoints k where k.chain_id = cid order by k.projection for update;
    for p in select distinct q.name, q.chain_id, q.apply
             from projections q join tracked_tables k on k.projection = q.name
             where coalesce(q.chain_id, cid) = cid order by q.name loop
        perform empty_tables(p.name, cid);
        if p.chain_id = cid and p.apply is not null then
            perform drop_projection(p.name);
        end if;
    end loop;
    insert into dropped_chains (chain_id) values (cid);
    delete from blocks where chain_id = cid;
    delete from vault_registry where chain_id = cid;
    delete from dropped_chains where chain_id = cid;
    delete from transactions where chain_id = cid;
    delete from token_events where chain_id = cid;
    delete from events where chain_id = cid;
    delete from checkpoints where chain_id = cid;
    delete from applied_blocks where chain_id = cid;
    delete from outbox where chain_id = cid;
    delete from sink_streams where chain_id = cid;
    delete from sink_skips where chain_id = cid;
    delete from sink_snapshots where chain_id = cid;
    for t in select distinct r.relation from projections q cross join unnest(q.tables) r (relation)
             where not exists (select from tracked_tables k where k.relation = r.relation) loop
        execute format('delete from %s where chain_id = $1', t.relation) using cid;
    end loop;
    delete from reorgs where chain_id = cid;
    delete from rebuilds where chain_id = cid;
    delete from opening_balances where chain_id = cid;
    delete from token_metadata where chain_id = cid;
    delete from rejected_events where chain_id = cid;
    delete from orphaned_blocks where chain_id = cid;
    delete from chains where chain_id = cid;
    perform set_config('ebbtide.ledger', ledger, true);
    perform tell('ebbtide_blocks', cid::text);
end $$;
comment on function drop_chain is 'Removes a chain with all that follows from it, its evidence included.';

-- The projections a word names: one, or all of them for null.
create or replace function checkpoints_named(cid bigint, projection text) returns setof text
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    if checkpoints_named.projection is not null
        and not exists (select from projections p where p.name = checkpoints_named.projection) then
        raise exception 'there is no projection named %', checkpoints_named.projection
            using errcode = 'no_data_found', constraint = 'unknown_projection',
                  hint = 'select name from projections lists them.';
    end if;
    if exists (select from projections p join chains c on c.chain_id = cid
               where p.name = checkpoints_named.projection
                 and (p.chain_id <> cid or p.kind <> c.kind)) then
        raise exception 'the projection % does not concern this chain', checkpoints_named.projection
            using errcode = 'invalid_parameter_value', constraint = 'projection_concerns_another_chain',
                  hint = 'select name, chain_id, kind from projections shows which it does.';
    end if;
    insert into checkpoints (chain_id, projection)
    select cid, p.name from projections p join chains c on c.chain_id = cid
    where (p.name = checkpoints_named.projection or checkpoints_named.projection is null)
      and coalesce(p.chain_id, cid) = cid and coalesce(p.kind, c.kind) = c.kind
    on conflict do nothing;
    return query select p.name::text from projections p
        where p.name = checkpoints_named.projection or checkpoints_named.projection is null;
end $$;

create or replace function replay(chain text, from_height bigint, projection text default null) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare cid bigint := chain_named(chain);
begin
    if from_height is null or from_height < 0 then
        raise exception 'from_height must be 0 or more, not %', from_height
            using errcode = 'invalid_parameter_value', constraint = 'heights_start_at_0';
    end if;
    perform checkpoints_named(cid, replay.projection);
    update checkpoints k set redo_from = least(k.redo_from, from_height)
    where k.chain_id = cid and (k.projection = replay.projection or replay.projection is null);
end $$;
comment on function replay is 'Applies the blocks from this height on again, in one transaction.';

create or replace function pause(chain text, projection text, at_height bigint default null) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare cid bigint := chain_named(chain);
begin
    perform checkpoints_named(cid, pause.projection);
    update checkpoints k set paused = true, pause_at = at_height
    where k.chain_id = cid and (k.projection = pause.projection or pause.projection is null);
end $$;
comment on function pause is 'Goes to this height and stays there; without one, stays where it is.';

create or replace function resume(chain text, projection text) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare cid bigint := chain_named(chain);
begin
    perform checkpoints_named(cid, resume.projection);
    update checkpoints k set paused = false, pause_at = null, halted_reason = null, deep_change = false
    where k.chain_id = cid and (k.projection = resume.projection or resume.projection is null);
    -- Also where nothing was paused: the caller wants it looked at now.
    perform tell('ebbtide_blocks', cid::text);
end $$;
comment on function resume is 'Goes on after pause(), and after a halt whose cause is fixed.';

-- Every account as it stood once the block at this height was applied.
create or replace function balances_at(chain text, height bigint)
returns table (token text, address text, amount numeric)
language plpgsql stable set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
declare
    cid bigint := chain_named(balances_at.chain);
    at_height bigint := balances_at.height;
    k ebbtide.checkpoints%rowtype;
begin
    select * into k from ebbtide.checkpoints where chain_id = cid and projection = 'token_balances';
    if k.through_height is null or at_height > k.through_height then
        raise exception 'block % of chain % is not applied yet', at_height, balances_at.chain
            using errcode = 'no_data_found', constraint = 'unknown_block';
    end if;
    if at_height < k.history_from then
        raise exception 'history of chain % below block % was pruned', balances_at.chain, k.history_from
            using errcode = 'no_data_found', constraint = 'history_pruned';
    end if;
    return query
        -- The first change above the height tells what stood before it; pruned history below is not needed.
        select b.token::text, b.address::text, coalesce(above.amount_before, b.amount)
        from ebbtide.balances b
        left join lateral (
            select c.balance_after - c.delta as amount_before, c.prev_height is not null as existed
            from ebbtide.balance_history c
            where b.height > at_height
              and c.balance_id = b.balance_id and c.height > at_height
            order by c.height limit 1
        ) above on true
        where b.chain_id = cid and (b.height <= at_height or above.existed);
end $$;
comment on function balances_at is 'All balances at a height, from the history in balance_changes.';

-- Read by the processor's statement: it writes no balance that is not what it read. A serialization failure: it looks again.
drop function if exists refuse_negative(text, text, numeric, bigint);
create or replace function refuse_changed_balances(projection text, height bigint) returns boolean
language plpgsql set search_path = ebbtide, pg_temp as $$
begin
    raise exception 'balances changed while block % was prepared for %', height, projection
        using errcode = 'serialization_failure', constraint = 'balances_are_what_was_read';
end $$;
