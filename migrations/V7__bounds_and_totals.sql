-- What comes from outside is bounded where it enters, and two reads cost what they show.

-- A later time cannot be shown (RFC 3339 has four digits for a year), and an infinite one is no time. A block keeps its place
-- without one.
update blocks set time = null where not (time >= '0001-01-01 00:00:00+00' and time < '10000-01-01 00:00:00+00');
alter table blocks
    add constraint blocks_time_is_in_the_years_1_to_9999 check (
        time >= '0001-01-01 00:00:00+00' and time < '10000-01-01 00:00:00+00'),
    -- Not looked for in blocks that are there: such a chain could not have gone on.
    add constraint blocks_are_not_their_own_parents check (parent_hash <> hash) not valid;
-- What a contract can hold, on either side of nothing.
alter table opening_balances
    add constraint opening_balances_amount_is_below_2_to_the_256 check (
        abs(amount) < 115792089237316195423570985008687907853269984665640564039457584007913129639936);

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
insert into token_totals (chain_id, token, total)
select b.chain_id, b.token, sum(b.amount) from balances b group by b.chain_id, b.token having sum(b.amount) <> 0;
update projections set tables = '{balances,balance_history,token_totals}' where name = 'token_balances';
