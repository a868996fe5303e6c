-- How many accounts hold each token. Runs after the balances, so `balances` and `balance_changes` are at the block.
create table public.holders (
    chain_id bigint,
    token text,
    holders bigint not null,
    primary key (chain_id, token)
);

create function public.count_holders(chain bigint, at_height bigint) returns void language plpgsql as $$
begin
    -- Who held none before the block and some after it came; the other way round, left.
    insert into holders as h (chain_id, token, holders)
    select chain, c.token,
        count(*) filter (where c.balance_after > 0 and c.balance_after - c.delta <= 0)
        - count(*) filter (where c.balance_after <= 0 and c.balance_after - c.delta > 0)
    from balance_changes c
    where c.chain_id = chain and c.height = at_height
    group by c.token
    on conflict (chain_id, token) do update set holders = h.holders + excluded.holders;
end $$;

select ebbtide.create_projection('holders', 'public.count_holders(bigint,bigint)', '{public.holders}',
    after => 'token_balances');
