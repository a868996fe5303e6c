-- Vaults after the address $3, or the one at $4, as they stood at height $2. What the newest change up to there left is
-- in the history; the rest of a row is what its deployment said, but for the current round, which has no history.
select v.address, v.layout,
    coalesce(h.unlocked_balance, v.unlocked_balance) as unlocked_balance,
    coalesce(h.locked_balance, v.locked_balance) as locked_balance,
    coalesce(h.stashed_balance, v.stashed_balance) as stashed_balance,
    v.current_round, v.current_round_address, v.fossil_client_address, v.eth_address, v.option_round_class_hash,
    v.alpha, v.strike_level, v.round_transition_period, v.auction_duration, v.round_duration, v.deployment_date,
    coalesce(h.height, v.latest_block) as latest_block
from vaults v
left join lateral (
    select h.height, h.unlocked_balance, h.locked_balance, h.stashed_balance
    from vault_history h
    where v.latest_block > $2 and h.chain_id = $1 and h.address = v.address and h.height <= $2
    order by h.height desc
    limit 1
) h on true
where v.chain_id = $1 and v.address > $3 and ($4::text is null or v.address = $4)
  and (v.latest_block <= $2 or h.height is not null)
order by v.address
limit $5
