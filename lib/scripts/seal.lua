-- seal: what is open becomes a generation that nobody writes to any more; PROTOCOL step "seal".
--
-- ARGV: gen (fresh for every call). A generation that an earlier run left sealed is returned instead: recovery is
-- the normal path.
-- Returns {NONE, now_ms} when nothing is there, or
-- {SEALED, now_ms, gen, 1 when sealed by this call or ASIDE when set aside by a reset, prev_gen, opened_ms,
--  sealed_ms, last_append_ms, accepted_at_seal, events_at_seal, members, then writer and 'lo-hi' in turn}.
local open, sealed, meta, open_seqs, sealed_seqs = KEYS[1], KEYS[2], KEYS[3], KEYS[6], KEYS[7]
local gen = ARGV[1]

if not gen or gen == '' then
  return redis.error_reply('BADARG seal: malformed arguments')
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local mine = '0'

if not redis.call('HGET', meta, 'sealed_gen') then
  if redis.call('EXISTS', sealed, sealed_seqs) > 0 then
    return redis.error_reply('BROKEN seal: a sealed set without a generation id; nothing was changed')
  end
  if redis.call('EXISTS', open) == 0 then
    return {'NONE', now}
  end
  if redis.call('EXISTS', open_seqs) == 0 then
    return redis.error_reply('BROKEN seal: an open set without its writers; nothing was changed')
  end
  local state = redis.call('HMGET', meta, 'accepted', 'events', 'opened_ms', 'last_append_ms')
  redis.call('RENAME', open, sealed)
  redis.call('RENAME', open_seqs, sealed_seqs)
  redis.call('HSET', meta, 'sealed_gen', gen, 'sealed_ms', now,
    'accepted_at_seal', state[1] or '0', 'events_at_seal', state[2] or '0',
    'sealed_opened_ms', state[3] or now, 'sealed_last_append_ms', state[4] or now)
  redis.call('HDEL', meta, 'opened_ms')
  mine = '1'
else
  -- The WAIT that may follow covers, since Redis 7.2, only what was done by the last write of its own connection. This
  -- is one that changes nothing, and that a Redis above maxmemory takes.
  redis.call('EXPIRE', sealed_seqs, 2000000000)
  redis.call('PERSIST', sealed_seqs)
end

if redis.call('HGET', meta, 'set_aside') then
  mine = 'ASIDE'
end

local state = redis.call('HMGET', meta, 'sealed_gen', 'prev_gen', 'sealed_opened_ms', 'sealed_ms',
  'sealed_last_append_ms', 'accepted_at_seal', 'events_at_seal')
local reply = {'SEALED', now, state[1], mine, state[2] or '', state[3], state[4], state[5], state[6], state[7],
  string.format('%d', redis.call('ZCARD', sealed))}
for _, field in ipairs(redis.call('HGETALL', sealed_seqs)) do
  reply[#reply + 1] = field
end
return reply
