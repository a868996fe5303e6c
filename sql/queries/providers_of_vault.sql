-- Providers of the vault $3 after the address $4, or the one at $5, as they stood at height $2. What the newest change up
-- to there left is in the history, but for start_liquidity.
select p.vault_address, p.address,
    coalesce(h.unlocked_balance, p.unlocked_balance) as unlocked_balance,
    coalesce(h.locked_balance, p.locked_balance) as locked_balance,
    coalesce(h.stashed_balance, p.stashed_balance) as stashed_balance,
    p.start_liquidity,
    coalesce(h.height, p.latest_block) as latest_block
from liquidity_providers p
left join lateral (
    select h.height, h.unlocked_balance, h.locked_balance, h.stashed_balance
    from liquidity_provider_history h
    where p.latest_block > $2 and h.chain_id = $1 and h.vault_address = p.vault_address and h.address = p.address
      and h.height <= $2
    order by h.height desc
    limit 1
) h on true
where p.chain_id = $1 and p.vault_address = $3 and p.address > $4 and ($5::text is null or p.address = $5)
  and (p.latest_block <= $2 or h.height is not null)
order by p.address
limit $6
