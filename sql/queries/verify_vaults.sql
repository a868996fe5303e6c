-- What must hold between the rows of the option vaults of a chain ($1), whatever wrote them.
select f.kind, f.key, f.ours, f.recomputed, count(*) over () as differences
from (
    -- The newest row of history is the row.
    select 'vault history' as kind, v.address as key,
        format('row at %s: %s, %s, %s', v.latest_block, v.unlocked_balance, v.locked_balance, v.stashed_balance) as ours,
        case when h.height is null then 'no history' else
            format('history at %s: %s, %s, %s', h.height, h.unlocked_balance, h.locked_balance, h.stashed_balance)
        end as recomputed
    from ebbtide.vaults v
    left join lateral (
        select * from ebbtide.vault_history h
        where h.chain_id = v.chain_id and h.address = v.address
        order by h.height desc limit 1
    ) h on true
    where v.chain_id = $1
      and (v.latest_block, v.latest_block_hash, v.unlocked_balance, v.locked_balance, v.stashed_balance)
          is distinct from (h.height, h.block_hash, h.unlocked_balance, h.locked_balance, h.stashed_balance)
    union all
    select 'provider history', format('%s in %s', v.address, v.vault_address),
        format('row at %s: %s, %s, %s', v.latest_block, v.unlocked_balance, v.locked_balance, v.stashed_balance),
        case when h.height is null then 'no history' else
            format('history at %s: %s, %s, %s', h.height, h.unlocked_balance, h.locked_balance, h.stashed_balance)
        end
    from ebbtide.liquidity_providers v
    left join lateral (
        select * from ebbtide.liquidity_provider_history h
        where h.chain_id = v.chain_id and h.vault_address = v.vault_address and h.address = v.address
        order by h.height desc limit 1
    ) h on true
    where v.chain_id = $1
      and (v.latest_block, v.latest_block_hash, v.unlocked_balance, v.locked_balance, v.stashed_balance)
          is distinct from (h.height, h.block_hash, h.unlocked_balance, h.locked_balance, h.stashed_balance)
    union all
    -- History of what is not there.
    select distinct 'vault history', h.address, 'no row', format('history at %s', max(h.height) over (partition by h.address))
    from ebbtide.vault_history h
    where h.chain_id = $1
      and not exists (select from ebbtide.vaults v where v.chain_id = h.chain_id and v.address = h.address)
    union all
    select distinct 'provider history', format('%s in %s', h.address, h.vault_address), 'no row',
        format('history at %s', max(h.height) over (partition by h.vault_address, h.address))
    from ebbtide.liquidity_provider_history h
    where h.chain_id = $1
      and not exists (select from ebbtide.liquidity_providers v
                      where v.chain_id = h.chain_id and v.vault_address = h.vault_address and v.address = h.address)
    union all
    -- Rounds are numbered without holes, and the vault names the newest.
    select 'round numbers', r.vault_address, format('%s rounds', count(*)), format('numbered %s to %s', min(r.round_id), max(r.round_id))
    from ebbtide.option_rounds r
    where r.chain_id = $1
    group by r.vault_address
    having count(*) <> max(r.round_id) - min(r.round_id) + 1
    union all
    select 'current round', v.address, coalesce(format('%s at %s', v.current_round, v.current_round_address), 'none'),
        coalesce(format('%s at %s', r.round_id, r.address), 'none')
    from ebbtide.vaults v
    left join lateral (
        select r.round_id, r.address from ebbtide.option_rounds r
        where r.chain_id = v.chain_id and r.vault_address = v.address
        order by r.round_id desc limit 1
    ) r on true
    where v.chain_id = $1 and (v.current_round, v.current_round_address) is distinct from (r.round_id, r.address)
    union all
    -- An auction that ended gave away what it sold, and gave back what was paid in too much.
    select 'sold options', r.address, r.sold_options::text, format('buyers may mint %s', b.mintable)
    from ebbtide.option_rounds r
    cross join lateral (
        select coalesce(sum(b.mintable_options), 0) as mintable from ebbtide.option_buyers b
        where b.chain_id = r.chain_id and b.round_address = r.address
    ) b
    where r.chain_id = $1 and r.state in ('Running', 'Settled') and b.mintable <> r.sold_options
    union all
    select 'paid in', r.address, format('premiums %s and refunds %s', r.premiums, b.refundable), format('bids of %s', p.paid)
    from ebbtide.option_rounds r
    cross join lateral (
        select coalesce(sum(b.refundable_amount), 0) as refundable from ebbtide.option_buyers b
        where b.chain_id = r.chain_id and b.round_address = r.address
    ) b
    cross join lateral (
        select coalesce(sum(p.amount * p.price), 0) as paid from ebbtide.option_bids p
        where p.chain_id = r.chain_id and p.round_address = r.address
    ) p
    where r.chain_id = $1 and r.state in ('Running', 'Settled') and p.paid <> r.premiums + b.refundable
    union all
    select 'queued liquidity', r.address, r.queued_liquidity::text, format('providers queued %s', q.queued)
    from ebbtide.option_rounds r
    cross join lateral (
        select coalesce(sum(q.queued_liquidity), 0) as queued from ebbtide.queued_liquidity q
        where q.chain_id = r.chain_id and q.round_address = r.address
    ) q
    where r.chain_id = $1 and q.queued <> r.queued_liquidity
) f
order by f.kind, f.key
limit $2
