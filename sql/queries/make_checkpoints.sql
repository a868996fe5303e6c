-- A checkpoint for every chain and every projection that concerns it.
insert into checkpoints (chain_id, projection)
select c.chain_id, p.name
from chains c
join projections p on coalesce(p.chain_id, c.chain_id) = c.chain_id and coalesce(p.kind, c.kind) = c.kind
where not exists (select from checkpoints k where k.chain_id = c.chain_id and k.projection = p.name)
on conflict do nothing
