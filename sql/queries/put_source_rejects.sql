-- put_source_rejects
-- What the source brought and nobody could take in. An event that is refused twice counts once.
insert into rejected_events (chain_id, height, tx_index, event_index, projection, block_hash, raw, reason)
select distinct on (r.height, r.tx_index, r.event_index)
    $1, r.height, r.tx_index, r.event_index, 'source', r.block_hash, r.raw, r.reason
from unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::jsonb[], $7::text[]) with ordinality
    as r (height, tx_index, event_index, block_hash, raw, reason, place)
order by r.height, r.tx_index, r.event_index, r.place desc
on conflict (chain_id, height, tx_index, event_index, projection) do update
set block_hash = excluded.block_hash, raw = excluded.raw, reason = excluded.reason, at = now()
