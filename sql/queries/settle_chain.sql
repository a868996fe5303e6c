-- settle_chain
-- The settings win over the row; what they leave open (null) stays. The network is kept at first sight.
update chains c
set kind = $2,
    network_id = coalesce(c.network_id, $3),
    start_height = coalesce($4, c.start_height),
    finality_depth = coalesce($5, c.finality_depth),
    announcers = coalesce($6, c.announcers),
    listed_only = $7
where c.chain_id = $1
