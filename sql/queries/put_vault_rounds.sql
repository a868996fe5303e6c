-- Rounds as blocks ($2, $3: heights, hashes) left them.
insert into option_rounds (
    latest_block, latest_block_hash, address, vault_address, round_id, state, start_date, end_date,
    settlement_date, deployment_date, strike_price, cap_level, reserve_price, available_options,
    starting_liquidity, queued_liquidity, sold_options, clearing_price, premiums, unsold_liquidity,
    settlement_price, payout_per_option, remaining_liquidity, chain_id)
select w.*, $1
from unnest(
    $2::bigint[], $3::text[], $4::text[], $5::text[], $6::numeric[], $7::text[], $8::numeric[], $9::numeric[],
    $10::numeric[], $11::bigint[], $12::numeric[], $13::numeric[], $14::numeric[], $15::numeric[], $16::numeric[],
    $17::numeric[], $18::numeric[], $19::numeric[], $20::numeric[], $21::numeric[], $22::numeric[], $23::numeric[],
    $24::numeric[]) as w
on conflict (chain_id, address) do update
set vault_address = excluded.vault_address, round_id = excluded.round_id, state = excluded.state,
    start_date = excluded.start_date, end_date = excluded.end_date, settlement_date = excluded.settlement_date,
    deployment_date = excluded.deployment_date, strike_price = excluded.strike_price,
    cap_level = excluded.cap_level, reserve_price = excluded.reserve_price,
    available_options = excluded.available_options, starting_liquidity = excluded.starting_liquidity,
    queued_liquidity = excluded.queued_liquidity, sold_options = excluded.sold_options,
    clearing_price = excluded.clearing_price, premiums = excluded.premiums,
    unsold_liquidity = excluded.unsold_liquidity, settlement_price = excluded.settlement_price,
    payout_per_option = excluded.payout_per_option, remaining_liquidity = excluded.remaining_liquidity,
    latest_block = excluded.latest_block, latest_block_hash = excluded.latest_block_hash
