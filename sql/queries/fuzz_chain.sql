-- The scratch chain: under the number it had before ($1), or a new one.
insert into chains (chain_id, name, kind, start_height)
overriding system value
values (coalesce($1::bigint, nextval(pg_get_serial_sequence('ebbtide.chains', 'chain_id'))), $2, $3, $4)
returning chain_id
