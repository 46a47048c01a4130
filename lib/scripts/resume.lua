-- resume: Redis went back in time, and nothing is pending in the shard: it goes on from where Postgres is; PROTOCOL.md.
--
-- ARGV: what the caller takes for the generation that was released last ('' = none), the newest generation in the
-- ledger, its cumulative total and events.
-- Returns {RESUMED}; {GONE} when something is pending, or another generation was released: nothing to do.
-- Writers and what is durable of them stay as they are: whoever has more than that is asked for it as before.
local open, sealed, meta, sealed_seqs = KEYS[1], KEYS[2], KEYS[3], KEYS[7]
local prev, head, accepted, events = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if not events or head == '' or not string.find(accepted, '^%-?%d+$') or not string.find(events, '^%d+$') then
  return redis.error_reply('BADARG resume: malformed arguments')
end
local state = redis.call('HMGET', meta, 'prev_gen', 'sealed_gen')
if (state[1] or '') ~= prev or state[2] or redis.call('EXISTS', open, sealed, sealed_seqs) > 0 then
  return {'GONE'}
end
redis.call('HSET', meta, 'prev_gen', head, 'accepted', accepted, 'accepted_at_seal', accepted, 'events', events,
  'events_at_seal', events)
return {'RESUMED'}
