-- What people read.

create or replace view balance_changes as
select h.chain_id, b.token, b.address, h.height, h.delta, h.balance_after, h.prev_height
from balance_history h
join balances b on b.balance_id = h.balance_id;
comment on view balance_changes is 'Every change of every balance, one row a block; prev_height null: the account did not exist.';

-- `e.kind` of a row e of token_events: not stored, since it follows from two columns beside it.
create or replace function kind(event token_events) returns text
language sql immutable parallel safe as $$
    select case when event.from_address is null then 'mint' when event.to_address is null then 'burn' else 'transfer' end
$$;
comment on function kind is 'mint, burn or transfer: select e.kind from token_events e.';

-- A package path is set by the chain, attributes are not: only packages that are believed announce tokens. One id
-- announced twice is the name of two ledgers whose movements cannot be told apart (specs/gno-token-balances 6).
create or replace view token_announcements as
select e.chain_id, left(e.attributes ->> 'token', 256) as token, e.height, e.tx_index, e.event_index, e.emitter
from chains c
join events e on e.chain_id = c.chain_id and e.name = 'NewToken' and e.emitter = any (coalesce(c.announcers,
    '{gno.land/p/demo/grc/grc20,gno.land/p/demo/tokens/grc20}'))
join blocks b on b.chain_id = e.chain_id and b.height = e.height
where c.kind = 'gno' and octet_length(e.attributes ->> 'token') <= 256;
comment on view token_announcements is
    'Tokens as packages that are believed announced them (gno); one with two rows is ambiguous.';

create or replace view tokens as
select b.chain_id, b.token, m.symbol, m.name, m.decimals,
    (select min(first.height)
     from balances a
     cross join lateral (
         select h.height from balance_history h where h.balance_id = a.balance_id order by h.height limit 1
     ) first
     where a.chain_id = b.chain_id and a.token = b.token) as first_height,
    b.total_supply, b.holders,
    exists (select from token_announcements a where a.chain_id = b.chain_id and a.token = b.token offset 1) as ambiguous
from (
    select chain_id, token, sum(amount) as total_supply, count(*) filter (where amount <> 0) as holders
    from balances group by chain_id, token
) b
left join token_metadata m on m.chain_id = b.chain_id and m.token = b.token;
comment on view tokens is 'One row a token that had an event: metadata, first height, total supply (signed sum), accounts that hold some; ambiguous: its id names two tokens.';

-- From the first change above the final height: the one below it may never have been written (history = "window").
create or replace view final_balances as
select b.chain_id, b.token, b.address, coalesce(above.amount_before, b.amount) as amount
from balances b
join chains c on c.chain_id = b.chain_id
left join lateral (
    select h.balance_after - h.delta as amount_before, h.prev_height is not null as existed
    from balance_history h
    where b.height > c.final_height
      and h.balance_id = b.balance_id and h.height > c.final_height
    order by h.height limit 1
) above on true
where b.height <= c.final_height or above.existed;
comment on view final_balances is 'Balances at the final height: no reorganisation is expected to change them.';

-- The most that floors can leave a vault short of what its providers have together. At a settlement the vault stashes the
-- floor of all that is queued, each provider the floor of one part: of n parts, up to n - 1 stay with the providers as
-- unlocked. The next auction hands out premiums and what remains by shares of what the vault has, and so multiplies what the
-- providers have beyond that: greatly, where the premiums exceed the liquidity.
create or replace function vault_may_be_short(chain bigint, vault text) returns numeric
language plpgsql stable set search_path = ebbtide, pg_temp as $$
declare
    r record;
    short numeric := 0;
begin
    for r in
        select o.state, o.starting_liquidity as start,
            o.premiums + case o.state when 'Settled' then o.unsold_liquidity + o.remaining_liquidity
                              else o.starting_liquidity end as handed_out,
            (select count(*) from queued_liquidity q
             where q.chain_id = o.chain_id and q.round_address = o.address) as queued
        from option_rounds o
        where o.chain_id = chain and o.vault_address = vault and o.state in ('Running', 'Settled')
        order by o.round_id
    loop
        -- Of nothing, nobody has a share. The quotient is rounded up.
        short := case when r.start = 0 then 0 else div(short * r.handed_out + r.start - 1, r.start) end;
        if r.state = 'Settled' then
            short := short + greatest(r.queued - 1, 0);
        end if;
    end loop;
    return short;
end $$;

-- Window functions run over the blocks above the final height alone.
create or replace view anomalies as
select b.chain_id, 'negative balance' as kind, b.height,
    format('%s in %s: %s', b.address, b.token, b.amount) as detail
from balances b where b.amount < 0
union all
select chain_id, 'break in the chain', height,
    case when before_height is distinct from height - 1 and height - 1 > coalesce(complete_to, -1)
         then format('block %s is missing', height - 1)
         else format('block %s names the parent %s, but block %s is %s', height, parent_hash, before_height, before_hash) end
from (
    select b.chain_id, b.height, b.parent_hash, c.complete_to, c.start_height,
        lag(b.height) over w as before_height, lag(b.hash) over w as before_hash
    from chains c
    join blocks b on b.chain_id = c.chain_id and b.height >= coalesce(c.final_height, 0)
    window w as (partition by b.chain_id order by b.height)
) s
where before_height is not null
  and (before_height < height - 1 and height - 1 > coalesce(complete_to, -1)
       or before_height = height - 1 and parent_hash <> before_hash)
union all
select r.chain_id, 'rejected event', r.height, format('%s refused event %s of transaction %s: %s',
    r.projection, r.event_index, r.tx_index, r.reason)
from rejected_events r
union all
select a.chain_id, 'ambiguous token', max(a.height), format('%s was announced %s times: its movements are those of as many tokens',
    a.token, count(*))
from token_announcements a
group by a.chain_id, a.token
having count(*) > 1
union all
select k.chain_id, 'failing projection', k.failed_height, format('%s: %s', k.projection, k.failed_reason)
from checkpoints k where k.failed_reason is not null
union all
select k.chain_id, 'halted projection', k.through_height, format('%s: %s', k.projection, k.halted_reason)
from checkpoints k where k.halted_reason is not null
union all
-- More than the contract's floors can leave a vault short of what its providers have, and events of it are missing.
select v.chain_id, 'vault short of its providers', v.latest_block, format('%s has %s less than its %s providers together',
    v.address, v.short, v.providers)
from (
    select v.chain_id, v.address, v.latest_block, p.providers,
        p.together - v.unlocked_balance - v.locked_balance - v.stashed_balance as short
    from vaults v
    cross join lateral (
        select count(*) as providers, sum(p.unlocked_balance + p.locked_balance + p.stashed_balance) as together
        from liquidity_providers p
        where p.chain_id = v.chain_id and p.vault_address = v.address
    ) p
) v
where case when v.short > 0 then v.short > vault_may_be_short(v.chain_id, v.address) end;
comment on view anomalies is 'What a person should look at: negative balances, breaks in the chain, ambiguous tokens, rejected events, failing and halted projections, vaults short of what their providers have.';
