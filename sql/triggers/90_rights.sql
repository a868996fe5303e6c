-- Functions that write are nobody's by default. The roles ebbtide_reader and ebbtide_writer are used where an
-- administrator made them; making roles takes a right that a managed Postgres may not give us.
revoke all on all functions in schema ebbtide from public;
do $$
begin
    if exists (select from pg_roles where rolname = 'ebbtide_reader') then
        grant usage on schema ebbtide to ebbtide_reader;
        grant select on all tables in schema ebbtide to ebbtide_reader;
        grant execute on function balances_at, chain_named, kind, next_notices, ack_notices to ebbtide_reader;
    end if;
    if exists (select from pg_roles where rolname = 'ebbtide_writer') then
        grant usage on schema ebbtide to ebbtide_writer;
        grant select on all tables in schema ebbtide to ebbtide_writer;
        grant insert, update, delete on chains, blocks, transactions, token_events, events, opening_balances,
            token_metadata, vault_registry to ebbtide_writer;
        grant execute on function balances_at, chain_named, kind, put_block, drop_blocks, drop_chain, replay, pause, resume
            to ebbtide_writer;
    end if;
end $$;
