-- Other plans than usual: rows come in the order in which they lie.
set local enable_indexscan = off;
set local enable_indexonlyscan = off;
set local enable_bitmapscan = off;
set local enable_hashagg = off
