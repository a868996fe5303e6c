insert into rejected_events (chain_id, height, tx_index, event_index, projection, block_hash, raw, reason)
values ($1, $2, $3, $4, 'source', $5, $6, $7)
on conflict (chain_id, height, tx_index, event_index, projection) do update
set block_hash = excluded.block_hash, raw = excluded.raw, reason = excluded.reason, at = now()
