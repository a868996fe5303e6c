-- NOTIFY is a doorbell: it carries a chain id, and what to do is read from the tables.

create or replace function ring() returns trigger
language plpgsql security definer set search_path = ebbtide, pg_temp as $$
begin
    -- A chain or a projection that is new has no task yet: 0 is heard by all.
    perform tell('ebbtide_blocks', case when tg_table_name = 'projections' or tg_table_name = 'chains' and tg_op = 'INSERT' then '0'
        else coalesce(to_jsonb(new) ->> 'chain_id', '0') end);
    return null;
end $$;

create or replace trigger added after insert on chains for each row execute function ring();
create or replace trigger changed after update on chains for each row
    when (old.name <> new.name or old.kind <> new.kind or old.start_height is distinct from new.start_height
          or old.finality_depth <> new.finality_depth or old.complete_to is distinct from new.complete_to)
    execute function ring();
create or replace trigger operated after update on checkpoints for each row
    when (old.redo_from is distinct from new.redo_from or old.paused <> new.paused
          or old.pause_at is distinct from new.pause_at or old.halted_reason is distinct from new.halted_reason)
    execute function ring();
create or replace trigger changed after insert or update on projections for each row execute function ring();
