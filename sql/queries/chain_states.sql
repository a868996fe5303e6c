-- Each chain with its tip, in name order; $1 narrows it to one.
select c.name, c.kind, c.network_id, c.start_height, c.finality_depth, c.head_height, c.final_height, c.complete_to,
    b.height as tip_height, b.hash as tip_hash
from chains c
left join lateral (
    select height, hash from blocks where chain_id = c.chain_id order by height desc limit 1
) b on true
where $1::text is null or c.name = $1
order by c.name
