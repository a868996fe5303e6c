-- The chain a request names, or up to two where it names none (two are one too many), with the block a projection ($2)
-- stands at: as much as an answer as of now says.
select c.chain_id, c.name, c.kind, c.network_id, k.height, k.hash, k.through_height
from chains c
left join checkpoints k on k.chain_id = c.chain_id and k.projection = $2
where $1::text is null or c.name = $1
order by c.chain_id
limit 2
