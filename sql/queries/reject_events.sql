-- Events ($3 to $8: height, the block's hash, transaction, place, the event, why) that a projection ($2) rejected.
select reject_event($1, $2, w.height, w.hash, w.tx_index, w.event_index, w.raw, w.reason)
from unnest($3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::jsonb[], $8::text[])
    as w (height, hash, tx_index, event_index, raw, reason)
