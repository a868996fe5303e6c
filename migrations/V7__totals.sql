-- Two reads cost what they show. In a large database this takes long; meanwhile nobody writes balances, and everybody reads.

-- What one account holds in all of its tokens, whatever the number of tokens on the chain. A number stands for the address, so
-- that the index is an eighth of one by the address itself (docs/decisions/018).
create index balances_address on balances (hashtextextended(address, chain_id));

create table token_totals (
    chain_id bigint not null,
    token text collate "C" not null,
    total numeric not null,
    constraint token_totals_pkey primary key (chain_id, token)
) with (fillfactor = 70);
comment on table token_totals is
    'The sum of balances over all accounts of a token, kept with them. A token without a row has a sum of 0.';
-- A program of the version before knows no totals, and may be waiting for this transaction to end: from then on it is refused.
-- What follows in sql/triggers/35_ledger.sql takes this trigger's place.
create function refuse_stray() returns trigger language plpgsql as $$
begin
    raise exception 'table % is written by a program of an earlier version: stop it, and start this one', tg_table_name
        using errcode = 'object_not_in_prerequisite_state', constraint = 'only_the_processor_writes_what_follows_from_the_chain';
end $$;
create trigger stray before insert or update or delete on balances
    for each statement when (current_setting('ebbtide.ledger', true) is distinct from 'on') execute function refuse_stray();
insert into token_totals (chain_id, token, total)
select b.chain_id, b.token, sum(b.amount) from balances b group by b.chain_id, b.token having sum(b.amount) <> 0;
update projections set tables = '{balances,balance_history,token_totals}' where name = 'token_balances';
