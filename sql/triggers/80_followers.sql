-- Projections that run after another one, in its transactions: what they read of it is exactly at their block.
--
-- One that is not where the other is (new, failed, paused, replayed) goes its own way until it is: it applies blocks in
-- transactions of its own, up to where the other stands, and reads `balances` from a replica in temporary tables, at the
-- height of each block. So it holds up nobody.

-- False while `ebbtide verify` holds it, which may be long: it is left behind then and comes after by itself. Otherwise that
-- waits for the end of this transaction.
create or replace function may_follow(chain bigint, name text) returns boolean
language plpgsql set search_path = ebbtide, pg_temp as $$
begin
    return pg_try_advisory_xact_lock_shared(hashtext('ebbtide verify ' || name), (chain % 2147483647)::int);
end $$;

-- One block for all followers that stand where their projection stood before it. A follower that fails is rolled back to
-- before the block and left behind.
create or replace function follow_block(
    chain bigint, parent text, before_height bigint, before_hash text, at_height bigint, at_hash text, at_revision bigint,
    start_at bigint, note boolean
) returns bigint
language plpgsql set search_path = ebbtide, pg_temp
set enable_hashjoin = on set enable_seqscan = on set enable_mergejoin = on set plan_cache_mode = auto as $$
#variable_conflict use_variable
declare
    f record;
    found_digest text;
    followed bigint := 0;
begin
    for f in
        select k.projection as name, k.seq, k.height, k.hash, k.apply_digest, p.apply, note as record,
            greatest(start_at, coalesce(p.start_height, 0)) as begins_at
        from checkpoints k
        join projections p on p.name = k.projection
        where k.chain_id = chain and p.after = parent and k.redo_from is null and k.halted_reason is null and not k.paused
        order by k.projection
    loop
        if f.height is null then
            continue when at_height <> f.begins_at;
        else
            continue when f.height is distinct from before_height or f.hash is distinct from before_hash;
        end if;
        continue when not may_follow(chain, f.name);
        -- Only now: one that stands elsewhere may be held for long. One that stands here is held for moments.
        perform from checkpoints k
        where k.chain_id = chain and k.projection = f.name and k.seq = f.seq and k.redo_from is null
          and k.halted_reason is null and not k.paused
        for update;
        continue when not found;
        -- What a block changed is told from its undo.
        f.record := note or (select k.tells > 0 from checkpoints k where k.chain_id = chain and k.projection = f.name);
        found_digest := apply_digest(f.apply);
        continue when f.height is not null and f.apply_digest is distinct from found_digest;
        begin
            f.seq := move_checkpoint(chain, f.name, f.seq, f.height, f.hash, case when f.record then 'apply' else 'final' end,
                at_height, at_hash, f.begins_at, found_digest);
            if f.record then
                insert into applied_blocks (chain_id, projection, height, hash, revision, seq)
                values (chain, f.name, at_height, at_hash, at_revision, f.seq);
            end if;
            perform check_shapes(f.name);
            perform run_apply(chain, f.name, f.height, f.hash, array[at_height], array[at_hash], f.record, false);
            followed := followed + 1;
        exception when others then
            update checkpoints k
            set failed_height = at_height, failed_reason = format('block %s (%s): %s', at_height, at_hash, sqlerrm),
                failures = k.failures + 1, updated_at = now()
            where k.chain_id = chain and k.projection = f.name;
        end;
    end loop;
    return followed;
end $$;

-- A follower that was not taken back must not look as if it had been, once the same block stands on other ones: it goes back itself.
create or replace function leave_followers_behind(chain bigint, parent text, to_height bigint) returns void
language plpgsql set search_path = ebbtide, pg_temp set enable_hashjoin = on set plan_cache_mode = auto as $$
#variable_conflict use_variable
begin
    with left_behind as (
        select k.projection
        from checkpoints k
        join projections p on p.name = k.projection
        where k.chain_id = chain and p.after = parent and k.height > coalesce(to_height, -1)
        order by k.projection
        -- One that is held moves by itself or is compared, which may last: the other does not wait for it.
        for update of k skip locked
    )
    update checkpoints k
    set redo_from = least(k.redo_from, coalesce(to_height + 1, 0)), updated_at = now()
    from left_behind l
    where k.chain_id = chain and k.projection = l.projection;
end $$;

-- Takes back the blocks above an ancestor for all followers that stand where their projection stands.
create or replace function undo_followers(
    chain bigint, parent text, from_height bigint, from_hash text, to_height bigint, to_hash text
) returns bigint
language plpgsql set search_path = ebbtide, pg_temp set enable_hashjoin = on set plan_cache_mode = auto as $$
#variable_conflict use_variable
declare
    f record;
    followed bigint := 0;
begin
    for f in
        select k.projection as name, k.seq
        from checkpoints k
        join projections p on p.name = k.projection
        where k.chain_id = chain and p.after = parent and k.redo_from is null and k.halted_reason is null and not k.paused
          and k.height = from_height and k.hash = from_hash
          -- Undo reaches back to there; one that began above it begins again, by itself.
          and (k.history_from is null or k.history_from <= to_height) and (to_height is null or k.start_height <= to_height)
          and k.apply_digest is not distinct from apply_digest(p.apply)
        order by k.projection
    loop
        continue when not may_follow(chain, f.name);
        perform from checkpoints k
        where k.chain_id = chain and k.projection = f.name and k.seq = f.seq and k.redo_from is null
          and k.halted_reason is null and not k.paused
        for update;
        continue when not found;
        begin
            perform undo_blocks(chain, f.name, f.seq, from_height, from_hash, to_height, to_hash, null);
            followed := followed + 1;
        exception when others then
            update checkpoints k
            set failed_height = from_height, failed_reason = format('going back to block %s: %s', to_height, sqlerrm),
                failures = k.failures + 1, updated_at = now()
            where k.chain_id = chain and k.projection = f.name;
        end;
    end loop;
    perform leave_followers_behind(chain, parent, to_height);
    return followed;
end $$;

-- The balances at a height, as this session's function finds them under their name: pg_temp comes first.
create or replace function fill_replica(chain bigint, at_height bigint, at_hash text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_variable
declare is_filled boolean;
begin
    if to_regclass('pg_temp.token_totals') is null then
        -- An earlier version made others.
        drop table if exists pg_temp.ebbtide_replica, pg_temp.balances, pg_temp.balance_changes;
        create temp table ebbtide_replica (chain_id bigint, height bigint, hash text, opened numeric);
        create temp table balances (
            chain_id bigint not null, token text collate "C" not null, address text collate "C" not null,
            amount numeric not null, height bigint not null, prev_height bigint, balance_id bigint, place integer,
            primary key (chain_id, token, address)) with (fillfactor = 70);
        create temp table balance_changes (
            chain_id bigint not null, token text collate "C" not null, address text collate "C" not null,
            height bigint not null, delta numeric not null, balance_after numeric not null, prev_height bigint,
            primary key (chain_id, token, address));
        create temp table token_totals (
            chain_id bigint not null, token text collate "C" not null, total numeric not null,
            primary key (chain_id, token)) with (fillfactor = 70);
    end if;
    truncate pg_temp.balances, pg_temp.balance_changes, pg_temp.token_totals, pg_temp.ebbtide_replica;
    -- From the balances as they stand, less what changed above the height: no more than there are accounts, and one snapshot.
    -- Only while they follow from the blocks that stand, and their history reaches down to there.
    with stands as materialized (
        select k.chain_id
        from ebbtide.checkpoints k
        join ebbtide.blocks b on b.chain_id = k.chain_id and b.height = k.height and b.hash = k.hash
        where k.chain_id = chain and k.projection = 'token_balances' and k.redo_from is null and k.through_height >= at_height
          and (k.history_from is null or k.history_from <= at_height)
          and not exists (
              select from ebbtide.applied_blocks a
              left join ebbtide.blocks s on s.chain_id = a.chain_id and s.height = a.height
              where a.chain_id = chain and a.projection = k.projection
                and (s.hash is distinct from a.hash or s.revision is distinct from a.revision))
    ), filled as (
        insert into pg_temp.balances (chain_id, token, address, amount, height)
        select chain, b.token, b.address, coalesce(above.amount_before, b.amount), coalesce(above.prev_height, b.height)
        from stands
        join ebbtide.balances b on b.chain_id = stands.chain_id
        left join lateral (
            select h.balance_after - h.delta as amount_before, h.prev_height
            from ebbtide.balance_history h
            where b.height > at_height and h.balance_id = b.balance_id and h.height > at_height
            order by h.height limit 1
        ) above on true
        where b.height <= at_height or above.prev_height is not null
    )
    select exists (select from stands) into is_filled;
    if not is_filled then
        insert into pg_temp.balances (chain_id, token, address, amount, height)
        select chain, m.token, m.address, sum(m.amount), max(m.height)
        from (
            select o.token, o.address, o.amount, -1 as height from ebbtide.opening_balances o where o.chain_id = chain
            union all
            select t.token, s.address, s.amount, t.height
            from ebbtide.chains c
            -- What lies below the start, or at a height without a block, is in no balance.
            join ebbtide.blocks b on b.chain_id = c.chain_id and b.height >= coalesce(c.start_height, 0) and b.height <= at_height
            join ebbtide.token_events t on t.chain_id = b.chain_id and t.height = b.height
            cross join lateral (values (t.from_address, -t.amount), (t.to_address, t.amount)) s (address, amount)
            where c.chain_id = chain and s.address is not null
              and not exists (select from ebbtide.rejected_events r
                              where r.chain_id = chain and r.height = t.height and r.tx_index = t.tx_index
                                and r.event_index = t.event_index and r.projection = 'token_balances')
        ) m
        group by m.token, m.address;
    end if;
    insert into pg_temp.token_totals (chain_id, token, total)
    select chain, b.token, sum(b.amount) from pg_temp.balances b group by b.token having sum(b.amount) <> 0;
    analyze pg_temp.balances;
    insert into pg_temp.ebbtide_replica values (chain, at_height, at_hash, opened(chain));
end $$;

-- A number for all the opening balances of a chain: another one when they change.
create or replace function opened(chain bigint) returns numeric
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return (select sum(hash_record_extended(o, 0)) from ebbtide.opening_balances o where o.chain_id = chain);
end $$;

-- Whether the replica is of the balances after a block; no hash: before the first one, with the opening balances as they are,
-- since a projection that has not begun is not told when they change.
create or replace function replica_stands(chain bigint, at_height bigint, at_hash text) returns boolean
language plpgsql stable set search_path = ebbtide, pg_temp as $$
#variable_conflict use_variable
begin
    if to_regclass('pg_temp.token_totals') is null then
        return false;
    end if;
    return exists (select from pg_temp.ebbtide_replica r
                   where r.chain_id = chain and r.height = at_height and r.hash is not distinct from at_hash
                     and (at_hash is not null or r.opened is not distinct from opened(chain)));
end $$;

-- Takes the replica over one block, which the projection itself has applied already. Where it does not stand before that block
-- (it does unless something moved meanwhile: LedgerWrite::fill_replica), it is filled within the time that a statement has.
create or replace function advance_replica(
    chain bigint, before_height bigint, before_hash text, at_height bigint, at_hash text
) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
#variable_conflict use_variable
begin
    if not replica_stands(chain, coalesce(before_height, at_height - 1), before_hash) then
        perform fill_replica(chain, coalesce(before_height, at_height - 1), before_hash);
    end if;
    delete from pg_temp.balance_changes;
    with net as (
        select t.token, s.address, sum(s.amount) as delta
        from ebbtide.token_events t
        cross join lateral (values (t.from_address, -t.amount), (t.to_address, t.amount)) s (address, amount)
        where t.chain_id = chain and t.height = at_height and s.address is not null
          and not exists (select from ebbtide.rejected_events r
                          where r.chain_id = chain and r.height = t.height and r.tx_index = t.tx_index
                            and r.event_index = t.event_index and r.projection = 'token_balances')
        group by t.token, s.address
    ), changed as (
        insert into pg_temp.balances as b (chain_id, token, address, amount, height)
        select chain, n.token, n.address, n.delta, at_height from net n
        on conflict (chain_id, token, address) do update
        set amount = b.amount + excluded.amount, prev_height = b.height, height = excluded.height
        returning b.token, b.address, b.amount, b.prev_height
    )
    insert into pg_temp.balance_changes (chain_id, token, address, height, delta, balance_after, prev_height)
    select chain, n.token, n.address, at_height, n.delta, c.amount, c.prev_height
    from net n join changed c on c.token = n.token and c.address = n.address;
    insert into pg_temp.token_totals as t (chain_id, token, total)
    select chain, c.token, sum(c.delta) from pg_temp.balance_changes c group by c.token having sum(c.delta) <> 0
    on conflict (chain_id, token) do update set total = t.total + excluded.total;
    update pg_temp.ebbtide_replica r set height = at_height, hash = at_hash;
end $$;

create or replace function drop_replica() returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
begin
    if to_regclass('pg_temp.token_totals') is not null then
        drop table pg_temp.ebbtide_replica, pg_temp.balances, pg_temp.balance_changes, pg_temp.token_totals;
    end if;
end $$;

-- Reads of the live balances and totals in this transaction so far.
create or replace function live_reads() returns bigint
language plpgsql stable set search_path = ebbtide, pg_temp as $$
declare
    live constant oid[] := array['ebbtide.balances'::regclass, 'ebbtide.balance_history'::regclass, 'ebbtide.token_totals'::regclass];
begin
    return (select sum(pg_stat_get_xact_numscans(o.oid))
            from (select unnest(live) as oid
                  union all
                  select i.indexrelid from pg_index i where i.indrelid = any (live)) o);
end $$;

drop function if exists apply_sql_block_on_replica(bigint, text, bigint, bigint[], text[], bigint[], bigint, bigint, text, bigint, bigint, boolean, text);
drop function if exists apply_sql_block_on_replica(bigint, text, bigint, bigint, text, bigint[], text[], bigint[], bigint, bigint, text, bigint, bigint, boolean, text);
