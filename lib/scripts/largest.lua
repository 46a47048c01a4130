-- largest: the members of a shard with the largest scores, for people who watch; read-only.
--
-- ARGV: how many of each set. Returns member and pending score (open and sealed) in turn, in no order. What a reset
-- set aside is not pending, as in peek.
local open, sealed, meta = KEYS[1], KEYS[2], KEYS[3]
local most = tonumber(ARGV[1])

if not most or most < 1 or most > 1000 then
  return redis.error_reply('BADARG largest: malformed arguments')
end
local sets, found, reply = {open}, {}, {}
if not redis.call('HGET', meta, 'set_aside') then
  sets[2] = sealed
end
for _, set in ipairs(sets) do
  for _, member in ipairs(redis.call('ZREVRANGE', set, 0, most - 1)) do
    found[member] = true
  end
end
for member in pairs(found) do
  local sum = 0
  for _, set in ipairs(sets) do
    sum = sum + tonumber(redis.call('ZSCORE', set, member) or 0)
  end
  reply[#reply + 1] = member
  reply[#reply + 1] = string.format('%.0f', sum)
end
return reply
