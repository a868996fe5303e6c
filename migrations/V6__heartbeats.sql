-- Who is alive and what it says of its parts: from this, and from the tables, `status`, `/ready`, `/health`, REST and the
-- metrics all make the same verdict (chain::verdict).
create table heartbeats (
    instance text collate "C" not null,
    program text not null,
    started_at timestamptz not null default clock_timestamp(),
    beat_at timestamptz not null default clock_timestamp(),
    ended text collate "C",
    says jsonb not null,
    constraint heartbeats_pkey primary key (instance),
    constraint heartbeats_ended_is_known check (ended in ('done', 'stopped'))
) with (fillfactor = 10);
comment on table heartbeats is 'One row a process that syncs or processes, written each second. Without a recent one, nobody is alive.';
comment on column heartbeats.instance is 'The process: its machine, its number there and its start.';
comment on column heartbeats.ended is 'done: there was nothing left to do; stopped: by a signal; null: it runs, or was killed.';
comment on column heartbeats.says is 'What it says of its syncers and of its processor, and since when it sees things as they are.';

-- A syncer that begins asks for all events of a few names. Without this it read all events of the chain. Announcements of tokens are
-- left out, or one token's would be looked for among all of them: they have an index of their own.
create index events_named on events (chain_id, name) where name <> 'NewToken';
