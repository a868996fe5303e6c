-- Every process that told of itself within a day, the one heard last first.
select h.instance, extract(epoch from clock_timestamp() - h.beat_at)::float8 as age_seconds, h.ended, h.says
from heartbeats h
order by h.ended is not null, h.beat_at desc
