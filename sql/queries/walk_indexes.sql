-- Every read of the REST interface is a walk along an index, stopped by a limit: plans that sort or scan a whole table
-- read the table's length instead of the page's. Planned again each time, since the right plan follows from the values.
set local plan_cache_mode = force_custom_plan;
set local enable_seqscan = off;
set local enable_bitmapscan = off;
set local enable_hashjoin = off;
set local enable_mergejoin = off;
set local enable_sort = off;
set local jit = off;
