-- What keeps the chain tables whole also does in sessions that play a replica (`session_replication_role`): what a restore or a
-- copy writes there is a change like any other.
do $$
declare t record;
begin
    for t in
        select g.tgrelid::regclass as relation, g.tgname
        from pg_trigger g
        join pg_proc p on p.oid = g.tgfoid and p.pronamespace = 'ebbtide'::regnamespace
        where not g.tgisinternal and g.tgenabled <> 'A' and g.tgrelid in (
            'chains'::regclass, 'blocks'::regclass, 'transactions'::regclass, 'token_events'::regclass, 'events'::regclass,
            'opening_balances'::regclass)
    loop
        execute format('alter table %s enable always trigger %I', t.relation, t.tgname);
    end loop;
end $$;
