-- release: the sealed generation is committed in Postgres and is freed; PROTOCOL step "release".
--
-- ARGV: gen, correction of accepted, correction of events: what the running totals are off by because Redis went
-- back in time and part of what it forgot is in Postgres; 0 unless it did.
-- Returns {RELEASED}; {GONE} when another generation, or none, is sealed: nothing to do.
-- One that a reset set aside is in quarantine, not in the tables: it is freed, and nothing becomes durable.
local sealed, meta, durable, sealed_seqs = KEYS[2], KEYS[3], KEYS[5], KEYS[7]
local TOTAL_MAX = 9.2e18

if redis.call('HGET', meta, 'sealed_gen') ~= ARGV[1] then
  return {'GONE'}
end
redis.call('HLEN', durable)
local time = redis.call('TIME')
local seqs = redis.call('HGETALL', sealed_seqs)
local set_aside = redis.call('HGET', meta, 'set_aside')
local totals = {accepted = ARGV[2] or '0', events = ARGV[3] or '0'}

for name, correction in pairs(totals) do
  if not string.find(correction, '^%-?%d+$') then
    return redis.error_reply('BADARG release: malformed arguments')
  end
  for _, field in ipairs({name, name .. '_at_seal'}) do
    if math.abs(tonumber(redis.call('HGET', meta, field) or 0)) + math.abs(tonumber(correction)) > TOTAL_MAX then
      return redis.error_reply('RANGE release: the running total of this shard is full')
    end
  end
end
-- First of the writes, because a Redis above maxmemory refuses a script whose first write may need memory: then the
-- one step that frees some would be refused for want of it.
redis.call('UNLINK', sealed, sealed_seqs)
redis.call('HDEL', meta, 'sealed_gen', 'sealed_ms', 'sealed_opened_ms', 'sealed_last_append_ms', 'set_aside')
if set_aside then
  return {'RELEASED'}
end
for i = 1, #seqs, 2 do
  -- Nobody asks what of a client's token is durable.
  if string.sub(seqs[i], 1, 5) ~= 'once:' then
    redis.call('HSET', durable, seqs[i], string.match(seqs[i + 1], '%-(%d+)$'))
  end
end
for name, correction in pairs(totals) do
  if tonumber(correction) ~= 0 then
    redis.call('HINCRBY', meta, name, correction)
    redis.call('HINCRBY', meta, name .. '_at_seal', correction)
  end
end
redis.call('HSET', meta, 'prev_gen', ARGV[1], 'last_release_ms',
  string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
return {'RELEASED'}
