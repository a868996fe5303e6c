-- The ten largest holders of each token, ready to be read. Made anew for the tokens that a block moves.
create table public.largest_holders (
    chain_id bigint,
    token text,
    place bigint,
    address text not null,
    amount numeric not null,
    primary key (chain_id, token, place)
);

create function public.rank_holders(chain bigint, at_height bigint) returns void language plpgsql as $$
begin
    delete from largest_holders l
    where l.chain_id = chain
      and l.token in (select c.token from balance_changes c where c.chain_id = chain and c.height = at_height);
    -- Equal amounts in the order of their addresses: the same every time.
    insert into largest_holders (chain_id, token, place, address, amount)
    select chain, t.token, row_number() over (partition by t.token order by b.amount desc, b.address), b.address, b.amount
    from (select distinct c.token from balance_changes c where c.chain_id = chain and c.height = at_height) t
    cross join lateral (
        select address, amount from balances
        where chain_id = chain and token = t.token and amount > 0
        order by amount desc, address limit 10
    ) b;
end $$;

select ebbtide.create_projection('largest_holders', 'public.rank_holders(bigint,bigint)', '{public.largest_holders}',
    after => 'token_balances');
