-- The tables of the projection NAME. Rows of the first hang on by cascades, so undo restores them in their place; those
-- of the second are deleted and put back.
create table if not exists public.trouble (projection text, hash text, primary key (projection, hash));
create table if not exists public.NAME_spot (
    chain_id bigint not null, a bigint not null, b text collate "C" not null, v bigint not null, note text, seat bigint,
    tags text[] not null, extra jsonb,
    primary key (chain_id, a, b), unique (chain_id, seat) deferrable);
create table if not exists public.NAME_leaf (
    chain_id bigint not null, k bigint not null, a bigint, b text collate "C", w bigint not null, mark bigint,
    primary key (chain_id, k), unique (chain_id, mark),
    foreign key (chain_id, a, b) references public.NAME_spot on delete cascade on update cascade);
