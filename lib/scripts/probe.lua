-- probe: whether a writer's next batch would be taken; read-only, PROTOCOL step "probe".
--
-- ARGV: writer, seq, known_durable. Returns OK and the writer's durable seq; GAP and the last seq that is here: then
-- Redis has gone back in time, or the shard was reset.
local writers, durable = KEYS[4], KEYS[5]
local seq, known = tonumber(ARGV[2]), tonumber(ARGV[3])

if not seq or not known then
  return redis.error_reply('BADARG probe: malformed arguments')
end
local last = math.max(tonumber(redis.call('HGET', writers, ARGV[1]) or 0), known)
if seq > last + 1 then
  return {'GAP', string.format('%.0f', last)}
end
return {'OK', redis.call('HGET', durable, ARGV[1]) or '0'}
