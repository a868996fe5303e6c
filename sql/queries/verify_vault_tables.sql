-- The tables of the option vaults, empty and of this session alone, for rows that are computed again.
create temp table vaults (like ebbtide.vaults including all);
create temp table vault_history (like ebbtide.vault_history including all);
create temp table liquidity_providers (like ebbtide.liquidity_providers including all);
create temp table liquidity_provider_history (like ebbtide.liquidity_provider_history including all);
create temp table option_rounds (like ebbtide.option_rounds including all);
create temp table queued_liquidity (like ebbtide.queued_liquidity including all);
create temp table option_buyers (like ebbtide.option_buyers including all);
create temp table option_bids (like ebbtide.option_bids including all)
