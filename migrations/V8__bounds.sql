-- What comes from outside is bounded where it enters. A migration of its own: nobody reads `blocks` while its constraints are
-- added, which is a moment, and V7 takes long.

-- What a contract can hold, on either side of nothing.
do $$
declare
    bad record;
begin
    select c.name, o.token, o.address, o.amount into bad
    from opening_balances o join chains c using (chain_id)
    where abs(o.amount) >= 115792089237316195423570985008687907853269984665640564039457584007913129639936
    limit 1;
    if found then
        raise exception 'the opening balance of % in % on chain % is %, which is not below 2^256 as of this version',
            bad.address, bad.token, bad.name, bad.amount
            using errcode = 'check_violation', constraint = 'opening_balances_amount_is_below_2_to_the_256',
                  hint = 'Correct or delete it in table opening_balances, and migrate again.';
    end if;
end $$;
alter table opening_balances
    add constraint opening_balances_amount_is_below_2_to_the_256 check (
        abs(amount) < 115792089237316195423570985008687907853269984665640564039457584007913129639936);

-- A later time cannot be read back: jiff's end at 9999-12-30 22:00:00.999999999 UTC, so that each is in a year of four digits
-- (RFC 3339 has no more) in every time zone, up to 25:59:59 from UTC. An infinite one is no time. A block keeps its place without
-- one. Only the first block of a chain can have named itself as its parent: it has none. All rows are looked at here, under a lock
-- that lets others read, so the constraints need not do it again.
lock table blocks in share row exclusive mode;
update blocks set time = null where not (time >= '0001-01-01 00:00:00+00' and time < '9999-12-30 22:00:01+00');
update blocks set parent_hash = '' where parent_hash = hash;
alter table blocks
    add constraint blocks_time_is_from_year_1_to_9999_12_30 check (
        time >= '0001-01-01 00:00:00+00' and time < '9999-12-30 22:00:01+00') not valid,
    add constraint blocks_are_not_their_own_parents check (parent_hash <> hash) not valid;

create table dropped_chains (
    chain_id bigint not null,
    constraint dropped_chains_pkey primary key (chain_id)
);
comment on table dropped_chains is 'Internal: what drop_chain takes away; holds a row inside its transaction alone.';
comment on column chains.network_id is 'What the node must answer; kept with the first blocks.';
