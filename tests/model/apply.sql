-- What a block does to the tables of the projection NAME: pieces of work named by hashes of what the block holds. Its
-- counterpart is fold.rs.
create or replace function public.NAME_apply(bigint, bigint) returns void language plpgsql as $apply$
declare
    word text;
    bytes bytea;
    turn integer;
    x bigint;
    n bigint;
    z bigint;
    y text;
    one record;
    other record;
begin
    if exists (select from blocks s join public.trouble t on t.hash = s.hash and t.projection = 'NAME'
               where s.chain_id = $1 and s.height = $2) then
        raise exception 'trouble with block % of NAME', $2;
    end if;
    for word in
        select w.word
        from (
            select -1 as tx, -1 as event, '' as place, s.hash BALANCES_AT_THE_BLOCK as word
            from blocks s where s.chain_id = $1 and s.height = $2
            union all
            select e.tx_index, e.event_index, '', concat_ws('/', e.tx_index, e.event_index, e.token,
                coalesce(e.from_address, '-'), coalesce(e.to_address, '-'), e.amount)
            from token_events e where e.chain_id = $1 and e.height = $2
            CHANGES_OF_THE_BLOCK
        ) w
        order by w.tx, w.event, w.place collate "C"
    loop
        bytes := sha256(convert_to('SALT/' || $2 || '/' || word, 'UTF8'));
        foreach turn in array array[0, 6, 12] loop
            x := get_byte(bytes, turn + 1) % 5;
            n := get_byte(bytes, turn + 2) % 10;
            y := case get_byte(bytes, turn + 3) % 2 when 0 then 'p' else 'q' end;
            z := get_byte(bytes, turn + 4) * 256 + get_byte(bytes, turn + 5);
            case get_byte(bytes, turn) % 24
            when 0, 1, 20, 21 then
                insert into NAME_spot as s values ($1, x, y, z, null, null, array['t' || z % 10], jsonb_build_object('z', z))
                on conflict (chain_id, a, b) do update
                set v = s.v + excluded.v, note = 'again', extra = s.extra || excluded.extra;
            when 2, 3, 22, 23 then
                insert into NAME_leaf as l
                select $1, n, s.a, s.b, z, null
                from (values (1)) always
                left join lateral (select s.a, s.b from NAME_spot s where s.chain_id = $1 and s.a >= x order by s.a, s.b limit 1) s on true
                on conflict (chain_id, k) do update set w = l.w + 1, a = excluded.a, b = excluded.b;
            when 4 then
                update NAME_spot s set v = v + z, tags = (tags || ('t' || z % 10))[greatest(cardinality(tags) - 1, 1):]
                where chain_id = $1 and a <= x;
            -- Keys change, and children go along.
            when 5 then
                update NAME_spot set a = a + 10, v = z
                where chain_id = $1 and a = x and b = y
                  and not exists (select from NAME_spot i where i.chain_id = $1 and i.a = x + 10 and i.b = y);
            when 6 then
                update NAME_spot s set a = a - 10
                where chain_id = $1 and a >= 10
                  and not exists (select from NAME_spot i where i.chain_id = $1 and i.a = s.a - 10 and i.b = s.b);
            when 7 then
                update NAME_spot set b = case b when 'p' then 'q' else 'p' end
                where chain_id = $1 and a = x and (select count(*) from NAME_spot i where i.chain_id = $1 and i.a = x) = 1;
            when 8 then
                delete from NAME_spot where chain_id = $1 and a = x and b = y;
            when 9 then
                delete from NAME_spot where chain_id = $1 and v % 5 = x;
            -- Deleted and put back, in two statements and in one.
            when 10 then
                for one in select * from NAME_spot where chain_id = $1 and a = x order by b loop
                    delete from NAME_spot where chain_id = $1 and a = one.a and b = one.b;
                    insert into NAME_spot values ($1, one.a, one.b, -one.v, null, one.seat, one.tags, one.extra);
                end loop;
            when 11 then
                with gone as (delete from NAME_leaf where chain_id = $1 and k = n returning *)
                insert into NAME_leaf select chain_id, k, null, null, -w, mark from gone;
            -- Rows change places in what is unique.
            when 12 then
                update NAME_spot s set seat = (select count(*) from NAME_spot i where i.chain_id = $1 and (i.a, i.b) <= (s.a, s.b))
                where chain_id = $1;
            when 13 then
                with ring as (
                    select a, b, v, seat, row_number() over (order by a, b) as i, count(*) over () as m
                    from NAME_spot where chain_id = $1
                )
                update NAME_spot s set v = next.v, seat = next.seat
                from ring r, ring next
                where s.chain_id = $1 and s.a = r.a and s.b = r.b and next.i = r.i % r.m + 1;
            when 14 then
                select * into one from NAME_leaf where chain_id = $1 order by k limit 1;
                select * into other from NAME_leaf where chain_id = $1 order by k limit 1 offset 1;
                if found then
                    delete from NAME_leaf where chain_id = $1 and k in (one.k, other.k);
                    insert into NAME_leaf values ($1, other.k, other.a, other.b, other.w + 1, one.mark),
                        ($1, one.k, one.a, one.b, one.w + 1, other.mark);
                end if;
            when 15 then
                update NAME_leaf set mark = z % 6
                where chain_id = $1 and k = (select min(i.k) from NAME_leaf i where i.chain_id = $1 and i.k >= n)
                  and not exists (select from NAME_leaf i where i.chain_id = $1 and i.mark = z % 6);
            when 16 then
                update NAME_leaf set k = k + 20
                where chain_id = $1 and k = n and not exists (select from NAME_leaf i where i.chain_id = $1 and i.k = n + 20);
            when 17 then
                update NAME_leaf l set k = k - 20
                where chain_id = $1 and k >= 20 and not exists (select from NAME_leaf i where i.chain_id = $1 and i.k = l.k - 20);
            when 18 then
                update NAME_spot
                set extra = case when extra is null then jsonb_build_object('n', jsonb_build_array(z, null)) end,
                    note = case when note is null then 'n' || z end
                where chain_id = $1 and b = y;
            else
                delete from NAME_leaf where chain_id = $1 and w % 3 = 0;
            end case;
        end loop;
    end loop;
end $apply$;
