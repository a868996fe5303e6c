-- What follows from the chain is written by the processor alone: a balance, a total or a checkpoint that somebody else changed
-- would be believed, and carried forward. People who must (a repair by hand) say so; `verify` finds what they left behind.

create or replace function refuse_stray() returns trigger
language plpgsql set search_path = ebbtide, pg_temp as $$
begin
    raise exception 'table % follows from the blocks: only the processor writes it', tg_table_name
        using errcode = 'object_not_in_prerequisite_state', constraint = 'only_the_processor_writes_what_follows_from_the_chain',
              hint = 'To have it computed again, call replay(chain, from_height). set ebbtide.write_tracked_tables = on lets this session '
                  'write it all the same; `ebbtide verify` shows what differs from the blocks afterwards.';
end $$;

-- Of a checkpoint, where it stands: what people decide (pause, resume, replay) is theirs, and a new one stands nowhere.
do $$
declare
    t text;
    stray constant text := 'current_setting(''ebbtide.ledger'', true) is distinct from ''on''
        and current_setting(''ebbtide.write_tracked_tables'', true) is distinct from ''on''';
begin
    foreach t in array array['balances', 'balance_history', 'token_totals', 'applied_blocks', 'outbox'] loop
        execute format('create or replace trigger stray before insert or update or delete or truncate on %I
            for each statement when (%s) execute function refuse_stray()', t, stray);
    end loop;
    execute format('create or replace trigger stray before delete or truncate or update of
            chain_id, projection, height, hash, through_height, start_height, history_from, journal_from, seq on checkpoints
        for each statement when (%s) execute function refuse_stray()', stray);
    execute format('create or replace trigger stray_new before insert on checkpoints
        for each row when ((new.height is not null or new.through_height is not null) and %s) execute function refuse_stray()', stray);
end $$;
