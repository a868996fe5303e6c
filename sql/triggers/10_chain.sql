-- Triggers of the chain tables. Applied after the migrations, in one transaction, as often as one likes.
--
-- Writers of one chain take turns: each first write of a transaction updates its chains row (`writes`). Without
-- that, events inserted beside a block that another transaction has not committed yet would be missed: their
-- trigger would see no block whose revision it must raise. An update, not a lock: a writer whose snapshot is older
-- than the other's commit (repeatable read) gets a serialization failure and not a stale answer.
--
-- The functions run with their joins forced to index lookups: a statement that deleted a million rows leaves
-- statistics behind that would make the next ten rows scan the table.

-- Rings, where there is room. Any role that listens and does not read fills the queue that all notifications share, and what
-- writes to a full one fails. A notification is a hint: a listener that misses it looks at its next poll.
create or replace function tell(channel text, payload text, most_full double precision default 0.5) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
begin
    if pg_notification_queue_usage() <= most_full then
        perform pg_notify(channel, payload);
    end if;
end $$;

-- Revisions never return, or a change would look like what was applied already: above all that were given where a copy of the
-- tables came without their sequence, or with an older one. That shows in the newest blocks and in the journal.
create or replace function lift_revisions() returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    given constant bigint := (select s.last_value - case when s.is_called then 0 else 1 end from blocks_revision_seq s);
begin
    if exists (select from applied_blocks a where a.revision > given) or exists (
        select from chains c
        cross join lateral (select b.revision from blocks b where b.chain_id = c.chain_id order by b.height desc limit 16) b
        where b.revision > given) then
        perform setval('blocks_revision_seq', greatest((select max(b.revision) from blocks b),
            (select max(a.revision) from applied_blocks a)));
    end if;
end $$;

-- Whether this session switched something off that keeps the tables whole, as the syncer does, which does it by itself. Only those
-- who could change the triggers are heard: from a role that may only write rows, it would make balances wrong in silence.
create or replace function is_switched(name text) returns boolean
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return coalesce(current_setting('ebbtide.' || name, true), '') = 'on' and pg_has_role(session_user,
        (select n.nspowner from pg_namespace n where n.oid = 'ebbtide'::regnamespace), 'usage');
end $$;

-- Whether drop_chain takes this chain away at this moment: no evidence of it is kept. A row and no setting, since members of
-- ebbtide_writer may call drop_chain, and could make such a setting too.
create or replace function is_being_dropped(chain bigint) returns boolean
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return exists (select from dropped_chains d where d.chain_id = chain);
end $$;

-- Rows of blocks came, went or changed: take the writer's turn, lower complete_to, send changes below the undo
-- horizon to redo_from, ring.
drop function if exists blocks_touched(bigint, bigint);
create or replace function blocks_touched(chain bigint, lowest_height bigint, not_concerned text[] default '{}') returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    update chains c
    set writes = c.writes + 1,
        complete_to = case when lowest_height <= c.complete_to then lowest_height - 1 else c.complete_to end
    where c.chain_id = chain;
    -- A snapshot taken before a block was applied shows a checkpoint below it, or none: holding the row fails such a
    -- writer, and so does meeting one that its snapshot does not show.
    if current_setting('transaction_isolation') <> 'read committed' then
        insert into checkpoints (chain_id, projection)
        select chain, p.name from projections p, chains c
        where c.chain_id = chain and lowest_height <= c.final_height
          and coalesce(p.chain_id, chain) = chain and coalesce(p.kind, c.kind) = c.kind
        on conflict do nothing;
        perform from checkpoints k join chains c on c.chain_id = k.chain_id
        where k.chain_id = chain and lowest_height <= c.final_height
        for no key update of k;
    end if;
    update checkpoints k
    set redo_from = least(k.redo_from, lowest_height), deep_change = true, changed_seq = k.seq,
        changed_from = least(case when k.changed_seq = k.seq then k.changed_from end, lowest_height)
    from chains c
    where c.chain_id = chain
      and k.chain_id = chain
      and lowest_height <= c.final_height
      and lowest_height <= k.through_height
      and k.projection <> all (not_concerned)
      and (not k.deep_change or k.redo_from is null or k.changed_seq is distinct from k.seq
           or lowest_height < greatest(k.redo_from, k.changed_from));
    perform tell('ebbtide_blocks', chain::text);
end $$;

create or replace function blocks_written() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform blocks_touched(chain_id, min(height)) from new_rows group by chain_id order by chain_id;
    return null;
end $$;

-- A new time is no new content: no balance follows from it. Whom a change of events does not concern, their trigger says.
create or replace function blocks_rewritten() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare
    not_concerned constant text[] := case when pg_trigger_depth() > 1
        then nullif(current_setting('ebbtide.not_concerned', true), '') end;
begin
    -- Anybody who may write can set it, and a block whose own row is another one concerns them all.
    perform blocks_touched(n.chain_id, min(n.height),
        case when bool_and((n.hash, n.parent_hash, n.event_count) is not distinct from (o.hash, o.parent_hash, o.event_count))
             then coalesce(not_concerned, '{}') else '{}' end)
    from new_rows n
    join old_rows o on o.chain_id = n.chain_id and o.height = n.height
    where n.revision <> o.revision
    group by n.chain_id
    order by n.chain_id;
    return null;
end $$;

-- A block's own row was edited: its content is another one from now on. Its replaced name is kept as evidence.
create or replace function block_edited() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    if new.chain_id <> old.chain_id or new.height <> old.height then
        raise exception 'block % of chain % cannot be moved to another height or chain', old.height, old.chain_id
            using errcode = 'integrity_constraint_violation', constraint = 'blocks_stay_at_their_height',
                  hint = 'Delete it and insert it where it belongs.';
    end if;
    if new.hash <> old.hash then
        perform archive_block(old.chain_id, old.height, old.hash, old.parent_hash, old.time);
    end if;
    new.revision := nextval(pg_get_serial_sequence('ebbtide.blocks', 'revision'));
    return new;
end $$;

create or replace function archive_block(chain bigint, at_height bigint, hash text, parent_hash text, "time" timestamptz)
returns void language plpgsql security definer
set search_path = ebbtide, pg_temp set enable_seqscan = off as $$
#variable_conflict use_column
begin
    insert into orphaned_blocks (chain_id, height, hash, parent_hash, time, transactions, token_events, events)
    select chain, at_height, archive_block.hash, archive_block.parent_hash, archive_block."time",
        coalesce((select jsonb_agg(to_jsonb(t) - '{chain_id,height}'::text[] order by tx_index)
                  from transactions t where t.chain_id = chain and t.height = at_height), '[]'),
        coalesce((select jsonb_agg(to_jsonb(e) - '{chain_id,height}'::text[] order by tx_index, event_index)
                  from token_events e where e.chain_id = chain and e.height = at_height), '[]'),
        coalesce((select jsonb_agg(to_jsonb(e) - '{chain_id,height}'::text[] order by tx_index, event_index)
                  from events e where e.chain_id = chain and e.height = at_height), '[]');
end $$;

create or replace function blocks_deleted() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off as $$
begin
    perform blocks_touched(chain_id, min(height)) from old_rows group by chain_id order by chain_id;
    perform archive_block(chain_id, height, hash, parent_hash, time)
    from old_rows where not is_being_dropped(chain_id) order by chain_id, height;
    delete from transactions t using old_rows o where t.chain_id = o.chain_id and t.height = o.height;
    delete from token_events e using old_rows o where e.chain_id = o.chain_id and e.height = o.height;
    delete from events e using old_rows o where e.chain_id = o.chain_id and e.height = o.height;
    delete from rejected_events r using old_rows o
    where r.chain_id = o.chain_id and r.height = o.height and r.projection = 'source';
    return null;
end $$;

-- Events or transactions came, went or changed: raise the revision of their blocks, old height and new.
--
-- Far below the head a change has projections built again, from the first block if need be. `token_balances` follows from
-- token_events alone and stays as it is where only another table changed. Events of a contract that is being caught up
-- (`ebbtide.catching_up`, the syncer's) do not concern the projections that say so.
drop function if exists events_touched(bigint, bigint[]);
create or replace function events_touched(chain bigint, at_heights bigint[], of_table text) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_material = off as $$
begin
    -- Before the blocks are looked at: see the head of this file.
    update chains c set writes = c.writes + 1 where c.chain_id = chain;
    if not found then
        raise exception 'there is no chain with chain_id %', chain
            using errcode = 'foreign_key_violation', constraint = 'events_chain_is_known',
                  hint = 'insert into chains (name, kind) values (...) makes one.';
    end if;
    perform set_config('ebbtide.not_concerned', case when of_table = 'token_events' then '{}' else (
        select array_agg(p.name)::text from projections p
        where p.name = 'token_balances'
           or p.ignores_catching_up and is_switched('catching_up')) end, true);
    update blocks b set revision = default
    from unnest(at_heights) t(height)
    where b.chain_id = chain and b.height = t.height;
    perform set_config('ebbtide.not_concerned', '{}', true);
end $$;

-- The syncer holds the writer's turn and writes the block rows in the same transaction (`ebbtide.bulk`).
create or replace function events_inserted() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    if is_switched('bulk') then
        return null;
    end if;
    perform events_touched(chain_id, array_agg(distinct height), tg_table_name)
    from new_rows group by chain_id order by chain_id;
    return null;
end $$;

create or replace function events_deleted() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform events_touched(chain_id, array_agg(distinct height), tg_table_name)
    from old_rows group by chain_id order by chain_id;
    return null;
end $$;

create or replace function events_updated() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform events_touched(chain_id, array_agg(distinct height), tg_table_name)
    from (select chain_id, height from old_rows union all select chain_id, height from new_rows) t
    group by chain_id order by chain_id;
    return null;
end $$;

-- What checks of the table would cost a quarter of loading: 0x hex is in lower case, or one account would be two; texts are
-- neither empty nor longer than an index can hold; positions are not negative. For everybody but the syncer, which refuses
-- the same before it copies (`refuse_misspelt` in store/chains.rs).
create or replace function token_events_spelt() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare
    bad record;
begin
    if tg_op = 'INSERT' and is_switched('bulk') then
        return null;
    end if;
    select n.height, n.tx_index, n.event_index, c.name, c.value,
        case when least(n.height, n.tx_index, n.event_index) < 0 then 'position_is_not_negative'
             when octet_length(c.value) between 1 and 512 then 'hex_is_in_lower_case'
             else c.short_name || '_is_1_to_512_bytes' end as broken
    into bad
    from new_rows n
    cross join lateral (
        values ('token', 'token', n.token), ('from_address', 'from', n.from_address), ('to_address', 'to', n.to_address)
    ) c (name, short_name, value)
    where least(n.height, n.tx_index, n.event_index) < 0
       or octet_length(c.value) not between 1 and 512
       or c.value <> lower(c.value) and left(c.value, 2) in ('0x', '0X')
    limit 1;
    if found then
        raise exception 'event %/%/%: %', bad.height, bad.tx_index, bad.event_index,
            case bad.broken
                when 'position_is_not_negative' then 'a height or an index is negative'
                when 'hex_is_in_lower_case' then format('the %s %s is 0x hex with capitals', bad.name, bad.value)
                else format('the %s has %s bytes and not 1 to 512', bad.name, octet_length(bad.value)) end
            using errcode = 'check_violation', constraint = 'token_events_' || bad.broken, column = bad.name,
                  table = 'token_events', hint = case bad.broken
                      when 'hex_is_in_lower_case' then 'lower(...) brings it to the canonical form; put_block does so automatically.'
                      else 'Texts have 1 to 512 bytes; heights and indexes are at least 0.' end;
    end if;
    return null;
end $$;

-- What stood before a chain's start changed: everything of that chain follows from it, and nothing of another.
create or replace function opening_balances_touched(chain bigint) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    update chains c set writes = c.writes + 1 where c.chain_id = chain;
    update checkpoints k set redo_from = 0 where k.chain_id = chain and k.start_height is not null;
end $$;

create or replace function opening_balances_inserted() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform opening_balances_touched(chain_id) from (select distinct chain_id from new_rows order by chain_id) t;
    return null;
end $$;

create or replace function opening_balances_deleted() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform opening_balances_touched(chain_id) from (select distinct chain_id from old_rows order by chain_id) t;
    return null;
end $$;

create or replace function opening_balances_updated() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform opening_balances_touched(chain_id)
    from (select chain_id from old_rows union select chain_id from new_rows order by chain_id) t;
    return null;
end $$;

create or replace function opening_balances_truncated() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform opening_balances_touched(chain_id) from (select chain_id from chains order by chain_id) t;
    return null;
end $$;

create or replace function refuse_truncate() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    raise exception 'truncate of % is refused: the projections would never hear of it', tg_table_name
        using errcode = 'feature_not_supported', constraint = 'chain_tables_are_not_truncated',
              hint = 'Use delete, drop_blocks(chain, from_height) or drop_chain(chain).';
end $$;

create or replace trigger written after insert on blocks referencing new table as new_rows
    for each statement execute function blocks_written();
create or replace trigger rewritten after update on blocks referencing old table as old_rows new table as new_rows
    for each statement execute function blocks_rewritten();
create or replace trigger edited before update on blocks for each row
    when (old.chain_id <> new.chain_id or old.height <> new.height or old.hash <> new.hash
          or old.parent_hash <> new.parent_hash or old.event_count is distinct from new.event_count)
    execute function block_edited();
create or replace trigger deleted after delete on blocks referencing old table as old_rows
    for each statement execute function blocks_deleted();
create or replace trigger truncated before truncate on blocks
    for each statement execute function refuse_truncate();

do $$
declare t text;
begin
    foreach t in array array['transactions', 'token_events', 'events'] loop
        execute format('create or replace trigger inserted after insert on %I referencing new table as new_rows
            for each statement execute function events_inserted()', t);
        execute format('create or replace trigger updated after update on %I
            referencing old table as old_rows new table as new_rows
            for each statement execute function events_updated()', t);
        execute format('create or replace trigger deleted after delete on %I referencing old table as old_rows
            for each statement execute function events_deleted()', t);
        execute format('create or replace trigger truncated before truncate on %I
            for each statement execute function refuse_truncate()', t);
    end loop;
end $$;

create or replace trigger spelt after insert on token_events referencing new table as new_rows
    for each statement execute function token_events_spelt();
create or replace trigger respelt after update on token_events referencing new table as new_rows
    for each statement execute function token_events_spelt();

-- An earlier version had one trigger here, for the opening balances of all chains.
drop trigger if exists touched on opening_balances;
drop function if exists opening_balances_touched();
create or replace trigger inserted after insert on opening_balances referencing new table as new_rows
    for each statement execute function opening_balances_inserted();
create or replace trigger updated after update on opening_balances
    referencing old table as old_rows new table as new_rows
    for each statement execute function opening_balances_updated();
create or replace trigger deleted after delete on opening_balances referencing old table as old_rows
    for each statement execute function opening_balances_deleted();
create or replace trigger truncated after truncate on opening_balances
    for each statement execute function opening_balances_truncated();
