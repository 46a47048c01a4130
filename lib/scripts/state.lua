-- state: what a shard holds, for status; read-only.
--
-- Returns {now_ms, members open, members sealed, accepted, accepted_at_seal, events, events_at_seal, sealed_gen,
-- prev_gen, opened_ms, sealed_opened_ms, sealed_ms, last_append_ms, last_release_ms, 1 when what is sealed was set
-- aside by a reset}, '' for what is not there.
local open, sealed, meta = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local state = redis.call('HMGET', meta, 'accepted', 'accepted_at_seal', 'events', 'events_at_seal', 'sealed_gen',
  'prev_gen', 'opened_ms', 'sealed_opened_ms', 'sealed_ms', 'last_append_ms', 'last_release_ms', 'set_aside')
local reply = {string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)),
  string.format('%d', redis.call('ZCARD', open)), string.format('%d', redis.call('ZCARD', sealed))}

for i = 1, 12 do
  reply[#reply + 1] = state[i] or ''
end
return reply
