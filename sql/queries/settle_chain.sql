-- settle_chain
-- The settings win over the row; what they leave open (null) stays. The network is not among them: note_written keeps it, with
-- the blocks that bear it out.
update chains c
set kind = $2,
    start_height = coalesce($3, c.start_height),
    finality_depth = coalesce($4, c.finality_depth),
    announcers = coalesce($5, c.announcers),
    listed_only = $6
where c.chain_id = $1
