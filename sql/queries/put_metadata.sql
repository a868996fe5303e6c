-- put_metadata
-- What tokens say of themselves; what was read first stays.
insert into token_metadata (chain_id, token, symbol, name, decimals)
select $1, * from unnest($2::text[], $3::text[], $4::text[], $5::smallint[])
on conflict do nothing
