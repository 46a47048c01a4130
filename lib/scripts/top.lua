-- top: the members of a shard with most pending; read-only.
--
-- ARGV: how many. Returns member and pending in turn, largest first: those that are among the first so many of open or
-- of sealed, each with what it has in both. What a reset set aside is not pending.
local open, sealed, meta = KEYS[1], KEYS[2], KEYS[3]
local wanted = tonumber(ARGV[1])

if not wanted or wanted < 1 or wanted > 1000 then
  return redis.error_reply('BADARG top: malformed arguments')
end
local sets = {open, sealed}
if redis.call('HGET', meta, 'set_aside') then
  sets[2] = nil
end
local pending, members = {}, {}
for at, set in ipairs(sets) do
  for _, member in ipairs(redis.call('ZREVRANGE', set, 0, wanted - 1)) do
    if not pending[member] then
      local sum = 0
      for _, other in ipairs(sets) do
        sum = sum + tonumber(redis.call('ZSCORE', other, member) or 0)
      end
      pending[member] = sum
      members[#members + 1] = member
    end
  end
end
table.sort(members, function(a, b)
  return pending[a] > pending[b] or (pending[a] == pending[b] and a < b)
end)
local reply = {}
for i = 1, math.min(wanted, #members) do
  reply[#reply + 1] = members[i]
  reply[#reply + 1] = string.format('%.0f', pending[members[i]])
end
return reply
