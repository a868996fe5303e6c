-- A sign of life with all that a process has to say; the rows of those that have not been heard for a day go.
with gone as (
    delete from heartbeats h where h.instance <> $1 and h.beat_at < clock_timestamp() - interval '1 day'
)
insert into heartbeats as h (instance, program, ended, says) values ($1, $2, $3, $4)
on conflict (instance) do update set beat_at = clock_timestamp(), ended = excluded.ended, says = excluded.says
