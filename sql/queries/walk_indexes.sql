-- What a connection of the REST interface says first. Every read is a walk along an index, stopped by a limit: plans that
-- sort or scan a whole table read the table's length instead of the page's. So the plan of a statement is known, and made
-- once for a connection.
set default_transaction_read_only = on;
set plan_cache_mode = force_generic_plan;
set enable_seqscan = off;
set enable_bitmapscan = off;
set enable_hashjoin = off;
set enable_mergejoin = off;
set enable_sort = off
