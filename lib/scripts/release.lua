-- release: the sealed generation is committed in Postgres and is freed; PROTOCOL step "release".
--
-- ARGV: gen. Returns {RELEASED}; {GONE} when another generation, or none, is sealed: nothing to do.
local sealed, meta, durable, sealed_seqs = KEYS[2], KEYS[3], KEYS[5], KEYS[7]

if redis.call('HGET', meta, 'sealed_gen') ~= ARGV[1] then
  return {'GONE'}
end
redis.call('HLEN', durable)
local time = redis.call('TIME')
local seqs = redis.call('HGETALL', sealed_seqs)
-- First of the writes, because a Redis above maxmemory refuses a script whose first write may need memory: then the
-- one step that frees some would be refused for want of it.
redis.call('UNLINK', sealed, sealed_seqs)
for i = 1, #seqs, 2 do
  redis.call('HSET', durable, seqs[i], string.match(seqs[i + 1], '%-(%d+)$'))
end
redis.call('HSET', meta, 'prev_gen', ARGV[1], 'last_release_ms',
  string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
redis.call('HDEL', meta, 'sealed_gen', 'sealed_ms', 'sealed_opened_ms', 'sealed_last_append_ms')
return {'RELEASED'}
