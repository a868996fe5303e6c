-- Whether the chain still holds this block at this height.
select exists (select from blocks where chain_id = $1 and height = $2 and hash = $3)
