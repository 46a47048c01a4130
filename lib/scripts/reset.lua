-- reset: the sealed generation is in quarantine, because Redis went back in time; the shard starts again from what
-- Postgres has. PROTOCOL step "reset".
--
-- ARGV: gen, id for what is open now (fresh for every call), the newest generation in the ledger ('' = none), its
-- cumulative total and events, then writer and seq of the vector in turn.
-- Returns {RESET}; {GONE} when another generation, or none, is sealed: nothing to do.
-- What is open is as doubtful as what was sealed. It takes the place of the sealed set, marked as set aside: from
-- there it is read like any generation and goes into quarantine too, and release frees it without making it durable.
-- So writers start with an empty open set, and no step has anything to lose when its flusher dies.
local open, sealed, meta, writers, durable = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local open_seqs, sealed_seqs = KEYS[6], KEYS[7]
local gen, aside, head, accepted, events = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

if not events or gen == '' or aside == '' or not string.find(accepted, '^%-?%d+$')
    or not string.find(events, '^%d+$') or #ARGV % 2 ~= 1 then
  return redis.error_reply('BADARG reset: malformed arguments')
end
for i = 6, #ARGV, 2 do
  if ARGV[i] == '' or not string.find(ARGV[i + 1], '^%d+$') then
    return redis.error_reply('BADARG reset: malformed writer or seq')
  end
end
if redis.call('HGET', meta, 'sealed_gen') ~= gen then
  return {'GONE'}
end
if redis.call('HGET', meta, 'set_aside') then
  return redis.error_reply('BADARG reset: this generation was set aside by a reset; it is released')
end
-- Keys of a wrong type fail here, before the first write.
redis.call('ZCARD', sealed)
redis.call('HLEN', sealed_seqs)
redis.call('HLEN', writers)
redis.call('HLEN', durable)
redis.call('HLEN', open_seqs)
local members = redis.call('ZCARD', open)
local state = redis.call('HMGET', meta, 'opened_ms', 'last_append_ms')
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))

-- First of the writes, as in release: it frees memory, so a Redis above maxmemory lets it through.
redis.call('UNLINK', sealed, sealed_seqs, writers, durable)
redis.call('HDEL', meta, 'sealed_gen', 'sealed_ms', 'sealed_opened_ms', 'sealed_last_append_ms', 'opened_ms',
  'prev_gen')
if members > 0 then
  redis.call('RENAME', open, sealed)
  if redis.call('EXISTS', open_seqs) > 0 then
    redis.call('RENAME', open_seqs, sealed_seqs)
  end
  redis.call('HSET', meta, 'sealed_gen', aside, 'set_aside', '1', 'sealed_ms', now,
    'sealed_opened_ms', state[1] or now, 'sealed_last_append_ms', state[2] or now)
else
  redis.call('UNLINK', open_seqs)
end
for i = 6, #ARGV, 2 do
  redis.call('HSET', writers, ARGV[i], ARGV[i + 1])
  redis.call('HSET', durable, ARGV[i], ARGV[i + 1])
end
if head ~= '' then
  redis.call('HSET', meta, 'prev_gen', head)
end
redis.call('HSET', meta, 'accepted', accepted, 'accepted_at_seal', accepted, 'events', events,
  'events_at_seal', events)
return {'RESET'}
