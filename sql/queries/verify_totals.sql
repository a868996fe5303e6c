-- What was looked at, and what the checkpoint $1 should be: the last counted block up to it, and what lies beyond.
select (select count(*) from verify_counted where height <= $1) as blocks,
    (select count(*) from verify_changes) as changes,
    (select count(*) from (select distinct token, address from verify_changes) a) as accounts,
    (select max(height) from verify_counted) as counts_to,
    (select hash from verify_counted where height = $1) as hash,
    (select count(*) from verify_counted where height > $1 or $1::bigint is null) as behind,
    (select min(height) from verify_counted where height > $1) as next_height
