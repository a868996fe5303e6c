-- What loading and catching up paid for and nobody needs.

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

-- `kind` follows from two columns beside it, and what a statement's rows look like is looked at once by its trigger
-- (sql/triggers/10_chain.sql). A dropped column leaves a null, and so eight bytes, in each row to come: a table that is
-- still empty is made again.
do $$
begin
    if exists (select from token_events) then
        alter table token_events
            drop column kind,
            drop constraint token_events_position_is_not_negative,
            drop constraint token_events_token_is_1_to_512_bytes,
            drop constraint token_events_from_is_1_to_512_bytes,
            drop constraint token_events_to_is_1_to_512_bytes;
    else
        drop table token_events;
        create table token_events (
            chain_id bigint not null,
            height bigint not null,
            tx_index bigint not null,
            event_index bigint not null,
            token text collate "C" not null,
            from_address text collate "C",
            to_address text collate "C",
            amount numeric(78, 0) not null,
            constraint token_events_pkey primary key (chain_id, height, tx_index, event_index),
            constraint token_events_amount_is_0_to_below_2_to_the_256 check (
                amount >= 0 and amount < 115792089237316195423570985008687907853269984665640564039457584007913129639936),
            constraint token_events_name_a_sender_or_a_receiver check (from_address is not null or to_address is not null)
        );
        comment on table token_events is 'Token movements; no from_address: mint, no to_address: burn. Amounts in base units.';
    end if;
end $$;
