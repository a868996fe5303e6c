-- The settings win over the row at start; what they leave open stays.
insert into chains as c (name, kind, start_height, finality_depth, announcers)
values ($1, $2, $3, coalesce($4::bigint, 64), $5)
on conflict (name) do update
set kind = excluded.kind,
    start_height = coalesce($3, c.start_height),
    finality_depth = coalesce($4, c.finality_depth),
    announcers = coalesce($5, c.announcers)
returning *
