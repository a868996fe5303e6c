-- The journal of applied blocks names the balances each block changed, so that undo finds their history by its primary key
-- and the history needs no index by height (an eighth of the cost of catching up).

alter table applied_blocks add column before_height bigint, add column ids bigint[];
comment on column applied_blocks.before_height is
    'Height of the block applied before it; undo goes by `ids` where these lead down to the block that stays.';
comment on column applied_blocks.ids is 'token_balances: the balances (balance_id) this block changed.';

-- A block whose history was not kept has no numbers: undo then looks at every balance.
update applied_blocks a
set before_height = coalesce(
        (select max(o.height) from applied_blocks o
         where o.chain_id = a.chain_id and o.projection = a.projection and o.height < a.height),
        (select max(b.height) from blocks b where b.chain_id = a.chain_id and b.height < a.height)),
    ids = array(select h.balance_id from balance_history h where h.chain_id = a.chain_id and h.height = a.height)
from checkpoints k
where a.projection = 'token_balances'
  and k.chain_id = a.chain_id and k.projection = a.projection
  and a.height > coalesce(k.history_from, -1);

drop index balance_history_height;
