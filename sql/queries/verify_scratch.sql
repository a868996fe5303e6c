-- What verify works with: the session's own tables, made before its read-only transaction begins.
create temp table verify_counted (
    height bigint not null,
    hash text collate "C" not null,
    revision bigint not null
);
create temp table verify_changes (
    token text collate "C" not null,
    address text collate "C" not null,
    height bigint not null,
    delta numeric not null,
    balance_after numeric not null,
    prev_height bigint
);
create temp table verify_refused (
    height bigint not null,
    tx_index bigint not null,
    event_index bigint not null,
    reason text not null
);
