-- Notices: what other systems are told, in the order of the checkpoint's moves, and taken back when it stops being true.
--
-- A row of `outbox` holds what one move of a checkpoint has to say. `notices_of` takes it apart; `claim_notices` numbers what a
-- sink wants of it and keeps that until the sink has acknowledged it.

-- Begins the ids of a move's notices. A block's name may be any text; an id has letters, digits, `_`, `-` and `:` alone. Unfolded into the
-- statements that call it, so it brings no search path of its own.
create or replace function notice_mark(chain_name text, checkpoint bigint, hash text) returns text
language sql immutable as $$
    select pg_catalog.left(pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(
        chain_name operator(pg_catalog.||) E'\n' operator(pg_catalog.||) checkpoint::text operator(pg_catalog.||) E'\n'
            operator(pg_catalog.||) coalesce(hash, ''), 'UTF8')), 'hex'), 16);
$$;

create or replace function mark_at(chain bigint, name text, hash text) returns text
language plpgsql stable set search_path = ebbtide, pg_temp as $$
begin
    return (select notice_mark(c.name, k.number, mark_at.hash)
            from chains c join checkpoints k using (chain_id)
            where c.chain_id = mark_at.chain and k.projection = mark_at.name);
end $$;

create or replace function ring_sinks() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform tell('ebbtide_notices', '');
    return null;
end $$;
create or replace trigger told after insert on outbox for each statement execute function ring_sinks();

-- What a row says going forward, numbered, of one of its blocks or (null) of all.
create or replace function told_of(o outbox, at_height bigint default null)
returns table (n bigint, place integer, height bigint, hash text, type text, account text, other text, token text, data jsonb)
language plpgsql stable set search_path = ebbtide, pg_temp set timezone = 'UTC' as $$
#variable_conflict use_column
declare
    said_blocks constant jsonb := o.said::jsonb -> 'blocks';
    -- Put together here: read from the row, it would be unpacked for each name.
    all_names constant text[] := o.names || '{}'::text[];
begin
    return query
    with said as materialized (
        select said_blocks as blocks, all_names as names
    ),
    block as (
        select p.place, o.heights[p.place] as height, o.hashes[p.place] as hash, s.blocks -> (p.place - 1) as said, s.names,
            jsonb_build_object('height', o.heights[p.place], 'hash', o.hashes[p.place]) as named
        from generate_subscripts(o.heights, 1) p (place), said s
    ),
    each as (
        select b.place, 0 as part, 0::bigint as at, 'ebbtide.block.applied' as type, null as account, null as other, null as token,
            b.named || jsonb_build_object('parent_hash', o.parents[b.place], 'time', o.times[b.place]) as data
        from block b
        where o.projection = 'token_balances'
        union all
        select b.place, 1, t.at, 'ebbtide.transfer.applied', coalesce(e.source, e.target), e.target, e.token,
            b.named || jsonb_build_object('tx_index', t.said -> 0, 'event_index', t.said -> 1, 'token', e.token,
                'from_address', e.source, 'to_address', e.target, 'amount', t.said -> 5,
                'kind', case when e.source is null then 'mint' when e.target is null then 'burn' else 'transfer' end)
        from block b
        cross join lateral jsonb_array_elements(b.said -> 0) with ordinality t (said, at)
        cross join lateral (
            select b.names[(t.said ->> 2)::integer] as token, b.names[(t.said ->> 3)::integer] as source,
                b.names[(t.said ->> 4)::integer] as target
        ) e
        union all
        select b.place, 2, t.at, 'ebbtide.balance.changed', e.address, null, e.token,
            b.named || jsonb_build_object('token', e.token, 'address', e.address, 'amount', t.said -> 2, 'cause', 'block')
        from block b
        cross join lateral jsonb_array_elements(b.said -> 1) with ordinality t (said, at)
        cross join lateral (
            select b.names[(t.said ->> 0)::integer] as token, b.names[(t.said ->> 1)::integer] as address
        ) e
        union all
        select b.place, 3, t.at, 'ebbtide.row.changed', concat_ws(':', t.said ->> 0, t.said ->> 2), null, null,
            b.named || jsonb_build_object('table', t.said -> 0, 'operation', t.said -> 1, 'key', t.said -> 3, 'old', t.said -> 4,
                'new', t.said -> 5, 'cause', 'block')
        from block b
        cross join lateral jsonb_array_elements(b.said -> 2) with ordinality t (said, at)
        union all
        select b.place, 4, t.at, t.said ->> 0, t.said ->> 1, null, null, (t.said -> 2) || b.named
        from block b
        cross join lateral jsonb_array_elements(b.said -> 3) with ordinality t (said, at)
    ),
    numbered as (
        select row_number() over (order by e.place, e.part, e.at) as n, e.* from each e
    )
    select m.n, m.place, o.heights[m.place], o.hashes[m.place], m.type, m.account, m.other, m.token, m.data
    from numbered m
    where told_of.at_height is null or o.heights[m.place] = told_of.at_height;
end $$;

-- The type of what takes a notice back. Null: the newest one of its kind holds, so it is never taken back.
create or replace function retracted_type(type text) returns text
language sql immutable set search_path = ebbtide, pg_temp as $$
    select case when retracted_type.type in ('ebbtide.balance.changed', 'ebbtide.projection.rebuilt') then null
        when retracted_type.type ~ '^ebbtide\.' then regexp_replace(retracted_type.type, '\.(applied|changed)$', '.retracted')
        else retracted_type.type || '.retracted' end;
$$;

-- All that a row says, numbered. Of a row that goes back: what it takes back of each block, newest first, as it was said, then
-- the balances as of the block it went back to.
create or replace function notices_of(o outbox)
returns table (n bigint, place integer, of_seq bigint, height bigint, hash text, type text, said_type text, retracts text, account text,
    other text, token text, data jsonb)
language plpgsql stable set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
declare
    whole constant jsonb := case when o.undone is not null then o.said::jsonb end;
begin
    if o.undone is null then
        return query
    select t.n, t.place, null::bigint, t.height, t.hash, t.type, t.type, null::text, t.account, t.other, t.token, t.data
    from told_of(o) t;
        return;
    end if;
    return query
    select row_number() over (order by e.part, e.at, e.n desc), null::integer, e.of_seq, e.height, e.hash, e.type, e.said_type, e.retracts,
        e.account, e.other, e.token, e.data
    from (
        select 0 as part, u.at, t.n, r.seq as of_seq, t.height, t.hash, retracted_type(t.type) as type, t.type as said_type,
            concat_ws(':', r.mark, r.seq, t.n) as retracts, t.account, t.other, t.token, t.data
        from jsonb_array_elements(o.undone) with ordinality u (block, at)
        join outbox r on r.chain_id = o.chain_id and r.projection = o.projection and r.seq = (u.block ->> 0)::bigint
        cross join lateral told_of(r, (u.block ->> 1)::bigint) t
        where retracted_type(t.type) is not null
        union all
        select 1, 0, 0, null, o.height, o.hash, 'ebbtide.projection.rebuilt', 'ebbtide.projection.rebuilt', null, null, null, null,
            jsonb_build_object('height', o.height, 'hash', o.hash, 'projection', o.projection, 'reason', whole -> 'rebuilt')
        where whole ? 'rebuilt'
        union all
        select 2, b.at, 0, null, o.height, o.hash, 'ebbtide.balance.changed', 'ebbtide.balance.changed', null, b.said ->> 1, null,
            b.said ->> 0,
            jsonb_build_object('height', o.height, 'hash', o.hash, 'token', b.said -> 0, 'address', b.said -> 1, 'amount', b.said -> 2,
                'cause', whole -> 'cause')
        from jsonb_array_elements(whole -> 'balances') with ordinality b (said, at)
        union all
        select 3, t.at, 0, null, o.height, o.hash, 'ebbtide.row.changed', 'ebbtide.row.changed', null,
            concat_ws(':', t.said ->> 0, t.said ->> 2), null, null,
            jsonb_build_object('height', o.height, 'hash', o.hash, 'table', t.said -> 0, 'operation', t.said -> 1, 'key', t.said -> 3,
                'old', t.said -> 4, 'new', t.said -> 5, 'cause', whole -> 'cause')
        from jsonb_array_elements(whole -> 'rows') with ordinality t (said, at)
    ) e;
end $$;

create or replace view notices as
select o.chain_id, o.projection, o.seq, t.n, concat_ws(':', o.mark, o.seq, t.n) as id, t.type, t.height, t.hash, t.retracts, t.data, o.at
from outbox o
cross join lateral notices_of(o) t;
comment on view notices is 'What was told of each move of a checkpoint, in order: kept until it is final and every sink has it.';

-- Of blocks that are taken back, each as [seq, height], those that were told, newest first.
create or replace function told_blocks(chain bigint, name text, blocks bigint[]) returns jsonb
language sql stable set search_path = ebbtide, pg_temp as $$
    select coalesce(jsonb_agg(jsonb_build_array(blocks[i][1], blocks[i][2]) order by blocks[i][2] desc), '[]')
    from generate_subscripts(blocks, 1) i
    where exists (select from outbox o where o.chain_id = chain and o.projection = name and o.seq = blocks[i][1]);
$$;

-- Takes back what was told of these blocks, in the row of this move of the checkpoint. `rows`: as they are again, for those that were not told
-- of all these blocks, the first of which was applied at `from_seq`.
create or replace function tell_undone(
    chain bigint, name text, seq bigint, at_height bigint, at_hash text, undone jsonb, cause text, from_seq bigint default null,
    rows jsonb default '[]'
) returns void
language sql set search_path = ebbtide, pg_temp as $$
    insert into outbox (chain_id, projection, seq, mark, height, hash, undone, said)
    select chain, name, tell_undone.seq, mark_at(chain, name, at_hash), at_height, at_hash, tell_undone.undone,
        jsonb_build_object('cause', cause, 'rows', tell_undone.rows, 'from', from_seq)::text
    from checkpoints k
    where k.chain_id = chain and k.projection = name and k.tells > 0 and (tell_undone.undone <> '[]' or tell_undone.rows <> '[]');
$$;

-- Tells of balances that no block in the row changed, where somebody wants to hear: a row that goes back to where the checkpoint
-- stands. Moves the checkpoint by its seq alone, which is returned.
create or replace function tell_balances(chain bigint, name text, at_height bigint, at_hash text, about jsonb, balances jsonb) returns bigint
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    new_seq bigint;
begin
    update checkpoints k set seq = k.seq + 1 where k.chain_id = chain and k.projection = name returning k.seq into new_seq;
    insert into outbox (chain_id, projection, seq, mark, height, hash, undone, said)
    values (chain, name, new_seq, mark_at(chain, name, at_hash), at_height, at_hash, '[]',
        (about || jsonb_build_object('balances', tell_balances.balances))::text);
    return new_seq;
end $$;

-- The balances that stood before the first block: null where nobody wants to hear.
create or replace function tell_opened(chain bigint, name text, at_height bigint) returns bigint
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    part jsonb;
    new_seq bigint;
begin
    if (select k.tells from checkpoints k where k.chain_id = chain and k.projection = name) > 0 then
        for part in
            select jsonb_agg(jsonb_build_array(b.token, b.address, b.amount::text) order by b.token, b.address)
            from (select o.*, (row_number() over (order by o.token, o.address) - 1) / 10000 as part
                  from opening_balances o where o.chain_id = chain) b
            group by b.part
            order by b.part
        loop
            new_seq := tell_balances(chain, name, at_height, null, '{"cause": "snapshot"}', part);
        end loop;
    end if;
    return new_seq;
end $$;

-- One notice that all was built again, and the balances that differ from what they were before: in rows of 10,000, since a row is
-- taken apart each time a sink is given some of it.
create or replace function tell_rebuilt(chain bigint, name text, at_height bigint, at_hash text, why text) returns void
language plpgsql set search_path = ebbtide, pg_temp as $$
declare
    about jsonb := jsonb_build_object('cause', 'rebuild', 'rebuilt', why);
    part jsonb;
begin
    if (select k.tells from checkpoints k where k.chain_id = chain and k.projection = name) = 0 then
        return;
    end if;
    if to_regclass('pg_temp.differing') is null then
        perform tell_balances(chain, name, at_height, at_hash, about, '[]');
        return;
    end if;
    for part in
        select coalesce(jsonb_agg(jsonb_build_array(b.token, b.address, b.amount::text) order by b.token, b.address)
            filter (where b.token is not null), '[]')
        from (select 0::bigint as part, null::text as token, null::text as address, null::numeric as amount
              union all
              select (row_number() over (order by d.token, d.address) - 1) / 10000, d.token, d.address, d.amount
              from pg_temp.differing d) b
        group by b.part
        order by b.part
    loop
        perform tell_balances(chain, name, at_height, at_hash, about, part);
        about := about - 'rebuilt';
    end loop;
end $$;

-- What has to be said of each block for this sink: the sum that checkpoints.tells holds.
create or replace function sink_tells(s sinks) returns integer
language sql immutable set search_path = ebbtide, pg_temp as $$
    select 1 + case when s.types is null or 'ebbtide.transfer.applied' = any (s.types) then 2 else 0 end
        + case when s.types is null or 'ebbtide.balance.changed' = any (s.types) then 4 else 0 end
        + case when s.types is null or 'ebbtide.row.changed' = any (s.types) then 16 else 0 end;
$$;

-- What is told of a checkpoint from here on is what its sinks want. The processor's next block asks for it, in the same fence as for
-- the seq: no block goes untold that a sink was promised.
create or replace function tell_what_is_wanted(chain bigint, projection text) returns void
language sql set search_path = ebbtide, pg_temp as $$
    update checkpoints k
    set tells = w.wanted
    from (select coalesce(bit_or(sink_tells(s)), 0) as wanted
          from sink_streams t join sinks s on s.name = t.sink
          where t.chain_id = tell_what_is_wanted.chain and t.projection = tell_what_is_wanted.projection and t.seq is not null) w
    where k.chain_id = tell_what_is_wanted.chain and k.projection = tell_what_is_wanted.projection and k.tells <> w.wanted;
$$;

-- Streams that wait for their chain to be caught up with begin with the next block, if it is: what is left then may still be
-- replaced. The checkpoint's row is ours first.
create or replace function begin_streams(chain bigint, projection text) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare
    k record;
begin
    select p.seq, p.through_height,
        greatest(c.head_height, (select max(b.height) from blocks b where b.chain_id = chain)) - c.finality_depth as caught_up_from
    into k
    from checkpoints p join chains c using (chain_id)
    where p.chain_id = chain and p.projection = begin_streams.projection
    for update of p;
    update sink_streams t
    set began = k.seq, seq = k.seq + 1, snapshot = s.start = 'snapshot'
    from sinks s
    where s.name = t.sink and t.chain_id = chain and t.projection = begin_streams.projection and t.seq is null
      and (k.through_height >= k.caught_up_from or s.start = 'beginning' and k.through_height is null);
    perform tell_what_is_wanted(chain, begin_streams.projection);
end $$;

-- The streams of sinks from checkpoints that they want to hear of and have none from: for a new sink, or a new checkpoint.
create or replace function make_streams() returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare
    made record;
begin
    -- One at a time: of a sink and a checkpoint that are made at the same time, neither transaction would see the other.
    perform pg_advisory_xact_lock(hashtext('ebbtide sinks'));
    for made in
        with new_ones as (
            insert into sink_streams (sink, chain_id, projection)
            select s.name, k.chain_id, k.projection
            from sinks s
            cross join checkpoints k
            join chains c using (chain_id)
            where (s.chains is null or c.name = any (s.chains)) and exists (
                select from unnest(coalesce(s.types, '{ebbtide.projection.rebuilt}')) t (type)
                where t.type = 'ebbtide.projection.rebuilt' or (k.projection = 'token_balances')
                    = (t.type in ('ebbtide.block.applied', 'ebbtide.transfer.applied', 'ebbtide.balance.changed')))
            on conflict do nothing
            returning chain_id, projection
        )
        select distinct w.chain_id, w.projection from new_ones w order by 1, 2
    loop
        perform begin_streams(made.chain_id, made.projection);
    end loop;
end $$;

create or replace function make_streams_of_new_checkpoints() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform make_streams();
    return null;
end $$;
-- For rows that came: many a transaction makes those that are missing, and finds none, and must not wait for another that is open.
create or replace trigger streams after insert on checkpoints for each row execute function make_streams_of_new_checkpoints();

create or replace function create_sink(
    name text, types text[] default null, chains text[] default null, tokens text[] default null, addresses text[] default null,
    key text default 'account', confirmations bigint default 0, final_only boolean default false, skip_retracted boolean default false,
    start text default 'live'
) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare
    known constant text[] := '{ebbtide.block.applied,ebbtide.transfer.applied,ebbtide.balance.changed,ebbtide.row.changed,ebbtide.projection.rebuilt}';
    unknown text;
    applied record;
begin
    -- What functions emit has types of their own.
    select t into unknown from unnest(create_sink.types) t where t like 'ebbtide.%' and t <> all (known) or t ~ '\.retracted$' limit 1;
    if found then
        raise exception 'there are no notices of type %', unknown
            using errcode = 'invalid_parameter_value', constraint = 'sinks_want_types_that_there_are',
                  hint = 'Known are ' || array_to_string(known, ', ') || '; what takes them back comes along.';
    end if;
    if 0 in (cardinality(create_sink.types), cardinality(create_sink.chains), cardinality(create_sink.tokens),
             cardinality(create_sink.addresses)) then
        raise exception 'a list of what sink % wants is empty', create_sink.name
            using errcode = 'invalid_parameter_value', constraint = 'sinks_want_something', hint = 'Leave it away to have all of them.';
    end if;
    select c into unknown from unnest(create_sink.chains) c where not exists (select from ebbtide.chains h where h.name = c) limit 1;
    if found then
        perform chain_named(unknown);
    end if;
    insert into sinks (name, kind, types, chains, tokens, addresses, key, confirmations, final_only, skip_retracted, start)
    values (create_sink.name, 'pull', create_sink.types, create_sink.chains,
        (select array_agg(canonical(t)) from unnest(create_sink.tokens) t),
        (select array_agg(canonical(a)) from unnest(create_sink.addresses) a),
        create_sink.key, create_sink.confirmations, create_sink.final_only, create_sink.skip_retracted, create_sink.start);
    if create_sink.start = 'beginning' then
        select c.name, k.through_height into applied
        from checkpoints k join chains c using (chain_id)
        where k.through_height is not null and (create_sink.chains is null or c.name = any (create_sink.chains))
        order by k.through_height desc limit 1;
        if found then
            raise exception 'chain % is applied up to % already: what was said of its first blocks was not kept', applied.name, applied.through_height
                using errcode = 'object_not_in_prerequisite_state', constraint = 'sinks_begin_before_the_first_block',
                      hint = 'start => ''snapshot'' tells all that is there, and then the changes; name other chains, or begin live.';
        end if;
    end if;
    perform make_streams();
end $$;
comment on function create_sink is 'A sink that is told from the next block on; next_notices gives it what it was told.';

create or replace function sink_named(sink text) returns sinks
language plpgsql set search_path = ebbtide, pg_temp as $$
declare s sinks;
begin
    select * into s from sinks k where k.name = sink for update;
    if not found then
        raise exception 'there is no sink named %', sink
            using errcode = 'no_data_found', constraint = 'unknown_sink',
                  hint = 'select name from sinks lists them; create_sink makes one.';
    end if;
    return s;
end $$;

create or replace function snapshot_sink(sink text) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform sink_named(sink);
    update sinks s set snapshots = s.snapshots + 1 where s.name = sink;
    update sink_streams t set snapshot = true where t.sink = snapshot_sink.sink and t.seq is not null;
    perform tell('ebbtide_notices', '');
end $$;
comment on function snapshot_sink is 'Tells a sink all that is there again, and goes on after it: for a consumer that lost its data.';

create or replace function pause_sink(sink text) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform sink_named(sink);
    update sinks s set paused = true where s.name = sink;
end $$;
comment on function pause_sink is 'Promises nothing more to this sink; what is told meanwhile is kept for it.';

create or replace function resume_sink(sink text) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    perform sink_named(sink);
    update sinks s set paused = false where s.name = sink;
    perform tell('ebbtide_notices', '');
end $$;
comment on function resume_sink is 'Goes on where the sink was paused.';

create or replace function drop_sink(sink text) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare
    t record;
begin
    perform sink_named(sink);
    -- First what a block in hand holds, as one who applies it or drops the chain does.
    perform from checkpoints k
    where exists (select from sink_streams d where d.sink = drop_sink.sink and d.chain_id = k.chain_id and d.projection = k.projection)
    order by k.chain_id, k.projection for update;
    for t in
        with gone as (delete from sink_streams d where d.sink = drop_sink.sink returning d.chain_id, d.projection)
        select g.chain_id, g.projection from gone g order by 1, 2
    loop
        perform tell_what_is_wanted(t.chain_id, t.projection);
    end loop;
    delete from sinks s where s.name = sink;
end $$;
comment on function drop_sink is 'Nothing is told to this sink any more, not even what it was promised.';

-- What a sink wants of a row, after the first `done` of its notices: up to `most`, numbered from `numbered` on. `skipped`: blocks that it
-- is not told of, each as seq:height; `stops_at`: nor of those from this place on. `reached`: the last one of them; `counted`: the last of all
-- up to there, wanted or not. `with_rows`: rows that are told as they are again are for it.
create or replace function wanted_of(
    s sinks, o outbox, chain_name text, done bigint, skipped text[], stops_at integer, with_rows boolean, most integer, numbered bigint,
    out bodies text[], out reached bigint, out counted bigint
)
language plpgsql stable set search_path = ebbtide, pg_temp as $$
#variable_conflict use_column
declare
    about constant jsonb := jsonb_build_object('specversion', '1.0', 'source', '/chains/' || chain_name || '/' || o.projection,
        'datacontenttype', 'application/json', 'time', to_char(o.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'));
    begins constant text := concat_ws(':', o.mark, o.seq, '');
    traces constant text := '00-' || left(o.mark, 16) || lpad(to_hex(o.seq), 16, '0') || '-';
begin
    with all_of_it as materialized (
        select t.* from notices_of(o) t where stops_at is null or t.place < stops_at
    ),
    wanted as (
        select t.*
        from all_of_it t
        where t.n > done
          and (cardinality(skipped) = 0 or concat_ws(':', coalesce(t.of_seq, o.seq), t.height) <> all (skipped))
          and (s.types is null or t.said_type = any (s.types))
          and (with_rows or t.place is not null or t.retracts is not null or t.type <> 'ebbtide.row.changed')
          and (s.tokens is null or t.token is null or t.token = any (s.tokens))
          and (s.addresses is null or t.token is null or t.account = any (s.addresses) or t.other = any (s.addresses))
        order by t.n
        limit most
    )
    select coalesce(array_agg((about || jsonb_strip_nulls(jsonb_build_object(
            'id', begins || v.n,
            'type', v.type,
            'sequence', lpad((numbered + v.at)::text, 20, '0'),
            'partitionkey', case when s.key = 'chain' then chain_name
                else coalesce(case when s.key = 'token' then v.token end, v.account, chain_name) end,
            'traceparent', traces || lpad(to_hex(v.n), 16, '0') || '-01',
            'dataschema', case when v.said_type like 'ebbtide.%' then 'urn:ebbtide:schema:' || v.said_type || ':1' end,
            'retracts', v.retracts))
            || jsonb_build_object('data', v.data))::text order by v.n), '{}'),
        max(v.n), (select max(t.n) from all_of_it t)
    into bodies, reached, counted
    from (select row_number() over (order by q.n) as at, q.* from wanted q) v;
end $$;

-- Everything that a sink wants of a checkpoint's state as of one block, for its stream: read by one statement, so that it is of one moment,
-- while blocks are applied. What is told goes on after it.
create or replace function take_snapshot(s sinks, chain bigint, name text) returns void
language plpgsql set search_path = ebbtide, pg_temp
-- Whatever the client's settings, the same bytes.
set timezone = 'UTC' set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1 as $$
declare
    rows text := 'select null::bigint as at, null::jsonb as told where false';
    as_of bigint;
begin
    if name = 'token_balances' and (s.types is null or 'ebbtide.balance.changed' = any (s.types)) then
        rows := 'select row_number() over (order by b.token, b.address), jsonb_build_array(b.token, b.address, b.amount::text)
            from balances b
            where b.chain_id = $2 and ($4 is null or b.token = any ($4)) and ($5 is null or b.address = any ($5))';
    elsif name <> 'token_balances' and (s.types is null or 'ebbtide.row.changed' = any (s.types)) then
        rows := coalesce(rows_to_tell(name), rows);
    end if;
    delete from sink_snapshots p where p.sink = s.name and p.chain_id = chain and p.projection = name;
    execute format($q$
        with parts as (
            insert into sink_snapshots (sink, chain_id, projection, part, mark, seq, height, hash, said)
            select $1, $2, $3, (r.at - 1) / 1000, mark_at($2, $3, k.hash) || '-s' || $6, k.seq, k.height, k.hash,
                jsonb_build_object('cause', 'snapshot', %L, jsonb_agg(r.told order by r.at))::text
            from checkpoints k
            cross join (%s) r (at, told)
            where k.chain_id = $2 and k.projection = $3
            group by (r.at - 1) / 1000, k.hash, k.seq, k.height
            returning seq
        )
        select coalesce((select max(p.seq) from parts p), k.seq) from checkpoints k where k.chain_id = $2 and k.projection = $3$q$,
        case when name = 'token_balances' then 'balances' else 'rows' end, rows)
    into as_of using s.name, chain, name, s.tokens, s.addresses, s.snapshots;
    update sink_streams t
    set began = as_of, seq = as_of + 1, n = 0, snapshot = false
    where t.sink = s.name and t.chain_id = chain and t.projection = name;
    delete from sink_skips k where k.sink = s.name and k.chain_id = chain and k.projection = name;
end $$;

-- Numbers up to `most` notices that a sink wants and was not promised yet, and keeps them for it. Returns how many. It must be
-- committed before any of them is sent: by then what they tell of is on disk as well, since that lies before it in the log.
create or replace function claim_notices(sink text, most integer) returns integer
language plpgsql security definer set search_path = ebbtide, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
    s constant sinks := sink_named(sink);
    skips constant boolean := s.confirmations > 0 or s.final_only or s.skip_retracted;
    w record;
    part record;
    v record;
    o outbox;
    bodies text[] := '{}';
    claimed record;
    skipped text[];
    -- Of its blocks, those up to here are done, or in hand.
    done_places integer;
    stops_at integer;
    is_silent boolean;
    with_rows boolean;
    -- A claim that finds little of what the sink wants gets somewhere all the same, before a limit on statements ends it.
    until constant timestamptz := clock_timestamp() + interval '1 second';
begin
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    if s.paused then
        return 0;
    end if;
    -- The one that waited longest first, so that a busy chain does not keep the others waiting.
    for w in
        select t.*, c.name as chain_name
        from sink_streams t join chains c using (chain_id)
        where t.sink = s.name and t.seq is not null
        order by t.told_at nulls first, t.chain_id, t.projection
    loop
        exit when cardinality(bodies) >= most;
        if w.snapshot then
            perform take_snapshot(s, w.chain_id, w.projection);
            select t.seq, t.began, 0 into w.seq, w.began, w.n from sink_streams t
            where t.sink = s.name and t.chain_id = w.chain_id and t.projection = w.projection;
        end if;
        for part in
            select * from sink_snapshots p
            where p.sink = s.name and p.chain_id = w.chain_id and p.projection = w.projection
            order by p.part
        loop
            exit when cardinality(bodies) >= most or clock_timestamp() > until;
            o := row(w.chain_id, w.projection, part.seq, concat_ws(':', part.mark, part.part), part.height, part.hash, '{}', '{}', '{}', '{}',
                '[]', '{}', part.said, part.at);
            select * into claimed
            from wanted_of(s, o, w.chain_name, part.done, '{}', null, true, most - cardinality(bodies), s.position + cardinality(bodies));
            bodies := bodies || claimed.bodies;
            if cardinality(bodies) >= most and claimed.reached < claimed.counted then
                update sink_snapshots p set done = claimed.reached
                where p.sink = s.name and p.chain_id = w.chain_id and p.projection = w.projection and p.part = part.part;
            else
                delete from sink_snapshots p
                where p.sink = s.name and p.chain_id = w.chain_id and p.projection = w.projection and p.part = part.part;
            end if;
        end loop;
        if exists (select from sink_snapshots p where p.sink = s.name and p.chain_id = w.chain_id and p.projection = w.projection) then
            update sink_streams t set told_at = clock_timestamp()
            where t.sink = s.name and t.chain_id = w.chain_id and t.projection = w.projection;
            continue;
        end if;
        -- Rows, where the chain stands, and what later rows take back, all as of one moment: a block of the branch that is left must not
        -- be taken for one that has been confirmed by the branch that was.
        for v in
            select r as told, k.through_height, c.final_height,
                case when skips and r.undone is null then (
                    select coalesce(array_agg((u.block ->> 1)::bigint), '{}')
                    from outbox later
                    cross join lateral jsonb_array_elements(later.undone) u (block)
                    where later.chain_id = r.chain_id and later.projection = r.projection and later.undone is not null
                      and later.seq > r.seq and (u.block ->> 0)::bigint = r.seq) end as taken_back
            from outbox r
            join checkpoints k using (chain_id, projection)
            join chains c using (chain_id)
            where r.chain_id = w.chain_id and r.projection = w.projection and r.seq >= w.seq
            order by r.seq
        loop
            exit when cardinality(bodies) >= most or clock_timestamp() > until;
            o := v.told;
            if o.seq > w.seq then
                w.seq := o.seq;
                w.n := 0;
            end if;
            stops_at := null;
            skipped := '{}';
            is_silent := false;
            with_rows := o.undone is not null and coalesce((o.said::jsonb ->> 'from')::bigint <= w.began, false);
            if o.undone is null and skips then
                -- One that a part of was told is told whole.
                done_places := case when w.n > 0 then (select coalesce(max(t.place), 0) from told_of(o) t where t.n <= w.n) else 0 end;
                for place in done_places + 1..cardinality(o.heights) loop
                    if o.heights[place] = any (v.taken_back) then
                        skipped := skipped || concat_ws(':', o.seq, o.heights[place]);
                        insert into sink_skips (sink, chain_id, projection, seq, height)
                        values (s.name, w.chain_id, w.projection, o.seq, o.heights[place])
                        on conflict do nothing;
                    elsif v.through_height < o.heights[place] + s.confirmations
                        or s.final_only and coalesce(v.final_height, -1) < o.heights[place] then
                        stops_at := place;
                        exit;
                    end if;
                end loop;
            elsif o.undone is not null then
                -- What it was not told is not taken back: blocks from before it began, and those left out.
                select coalesce(array_agg(u.block) filter (where u.was_left_out or u.was_before), '{}'),
                    coalesce(bool_and(u.was_left_out), false)
                into skipped, is_silent
                from (
                    select concat_ws(':', b.block ->> 0, b.block ->> 1) as block, (b.block ->> 0)::bigint <= w.began as was_before,
                        exists (select from sink_skips k
                                where k.sink = s.name and k.chain_id = w.chain_id and k.projection = w.projection
                                  and k.seq = (b.block ->> 0)::bigint and k.height = (b.block ->> 1)::bigint) as was_left_out
                    from jsonb_array_elements(o.undone) b (block)
                ) u;
            end if;
            if not is_silent then
                select * into claimed
                from wanted_of(s, o, w.chain_name, w.n, skipped, stops_at, with_rows, most - cardinality(bodies), s.position + cardinality(bodies));
                bodies := bodies || claimed.bodies;
                if cardinality(bodies) >= most then
                    w.n := claimed.reached;
                    exit;
                end if;
                w.n := greatest(w.n, claimed.counted);
            end if;
            exit when stops_at is not null;
            if o.undone is not null then
                delete from sink_skips k
                using jsonb_array_elements(o.undone) u (block)
                where k.sink = s.name and k.chain_id = w.chain_id and k.projection = w.projection
                  and k.seq = (u.block ->> 0)::bigint and k.height = (u.block ->> 1)::bigint;
            end if;
            w.seq := o.seq + 1;
            w.n := 0;
        end loop;
        update sink_streams t
        set seq = w.seq, n = w.n, told_at = clock_timestamp()
        where t.sink = s.name and t.chain_id = w.chain_id and t.projection = w.projection
          and ((t.seq, t.n) is distinct from (w.seq, w.n) or cardinality(bodies) > 0);
    end loop;
    if cardinality(bodies) > 0 then
        insert into sink_batches (sink, first, last, notices)
        values (s.name, s.position + 1, s.position + cardinality(bodies), bodies);
        update sinks k set position = s.position + cardinality(bodies) where k.name = s.name;
    end if;
    return cardinality(bodies);
end $$;

-- The next notices of a sink, in their order, which nobody else is given until the lease ends. What is not acknowledged by then comes
-- again, the same byte for byte.
create or replace function next_notices(sink text, most integer default 100, lease interval default '1 minute')
returns table ("position" bigint, id text, type text, key text, notice json)
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare
    s sinks := sink_named(sink);
    given_to bigint;
begin
    if most is null or most not between 1 and 10000 then
        raise exception 'next_notices gives 1 to 10000 notices at once, not %', most
            using errcode = 'invalid_parameter_value', constraint = 'next_notices_gives_1_to_10000';
    end if;
    if lease is null or lease not between '1 second' and '1 day' then
        raise exception 'a lease lasts 1 second to 1 day, not %', lease
            using errcode = 'invalid_parameter_value', constraint = 'leases_last_1_second_to_1_day';
    end if;
    if s.leased_until <= clock_timestamp() then
        s.leased := s.acked;
    end if;
    if s.position - s.leased < most then
        perform claim_notices(s.name, (most - (s.position - s.leased))::integer);
        s.position := (select k.position from sinks k where k.name = s.name);
    end if;
    given_to := least(s.position, s.leased + most);
    update sinks k
    set leased = given_to, leased_until = case when given_to > s.leased then clock_timestamp() + lease else k.leased_until end
    where k.name = s.name;
    return query
        select g.position, g.body::jsonb ->> 'id', g.body::jsonb ->> 'type', g.body::jsonb ->> 'partitionkey', g.body::json
        from (
            select b.first + u.at - 1 as position, u.body
            from sink_batches b
            cross join lateral unnest(b.notices) with ordinality u (body, at)
            where b.sink = s.name and b.last > s.leased and b.first <= given_to
        ) g
        where g.position > s.leased and g.position <= given_to
        order by g.position;
end $$;
comment on function next_notices is 'The next notices of a sink, under a lease; ack_notices says that they arrived.';

create or replace function ack_notices(sink text, "position" bigint) returns void
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
declare
    s constant sinks := sink_named(sink);
begin
    if ack_notices.position is null or ack_notices.position > s.leased then
        raise exception 'sink % was given notices up to %, so it cannot have %', sink, s.leased, ack_notices.position
            using errcode = 'invalid_parameter_value', constraint = 'sinks_acknowledge_what_they_were_given',
                  hint = 'Acknowledge the position of the last notice that next_notices gave.';
    end if;
    -- One that arrives late, after a later one, says nothing new.
    update sinks k
    set acked = greatest(k.acked, ack_notices.position),
        leased_until = case when k.leased > greatest(k.acked, ack_notices.position) then k.leased_until end
    where k.name = s.name;
    delete from sink_batches b where b.sink = s.name and b.last <= ack_notices.position;
end $$;
comment on function ack_notices is 'The sink has all notices up to this position.';

-- What is final and was promised to every sink goes, but for what is yet to be taken back.
create or replace function prune_outbox(chain bigint, projection text, horizon bigint) returns void
language plpgsql set search_path = ebbtide, pg_temp set enable_seqscan = off as $$
declare
    passed constant bigint := (select coalesce(min(t.seq), 9223372036854775807) from sink_streams t
                               where t.chain_id = chain and t.projection = prune_outbox.projection and t.seq is not null);
    needed constant bigint := (select coalesce(min((u.block ->> 0)::bigint), passed)
                               from outbox o
                               cross join lateral jsonb_array_elements(o.undone) u (block)
                               where o.chain_id = chain and o.projection = prune_outbox.projection and o.undone is not null
                                 and o.seq >= passed);
begin
    delete from outbox o
    where o.chain_id = chain and o.projection = prune_outbox.projection and o.seq < least(passed, needed)
      and coalesce(o.height, -1) <= horizon;
end $$;
