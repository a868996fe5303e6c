-- Where lines of opening balances wait until all of them are known to be good.
create temporary table opening_given (
    line bigint not null,
    token text collate "C" not null,
    address text collate "C" not null,
    amount numeric not null
)
