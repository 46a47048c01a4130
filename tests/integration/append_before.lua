-- append_before: append as an earlier version had it, with a ZINCRBY for each member: what an upgrade meets in Redis.
-- Arguments and answers are those of lib/scripts/append.lua.
local open, meta, writers, durable, open_seqs = KEYS[1], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local writer, seq, known, events = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local marker, value, ttl = KEYS[8], ARGV[5], tonumber(ARGV[6])
local first_member = marker and 7 or 5
local merge = #ARGV % 2 == 1 and table.remove(ARGV) or 'add'
local EXACT = 9007199254740992
local TOTAL_MAX = 9.2e18

local function whole(n)
  return n and n >= 0 and n <= EXACT and n == math.floor(n)
end

if not writer or writer == '' or not whole(seq) or seq < 1 or not whole(known) or not whole(events)
    or (merge ~= 'add' and merge ~= 'max' and merge ~= 'min')
    or (marker and (seq ~= 1 or not value or value == '' or not whole(ttl) or ttl < 1)) then
  return redis.error_reply('BADARG append: malformed arguments')
end

local marked = marker and redis.call('GET', marker)
if marked then
  return {marked == value and 'DUP' or 'OTHER', '0'}
end

local last = math.max(tonumber(redis.call('HGET', writers, writer) or 0), known)
local safe = redis.call('HGET', durable, writer) or '0'
if seq <= last then
  return {'DUP', safe}
end
if seq ~= last + 1 then
  return {'GAP', string.format('%.0f', last)}
end

-- Of what does not add up: member -> what it comes to, a member given twice included; and the members in turn.
local values, members = {}, {}
local function extreme(a, b)
  return (merge == 'max') == (a > b) and a or b
end

-- The change of accepted, in parts that a double adds up exactly; and what bounds it.
local changes, sum, weight = {0}, 0, 0
local function account(change)
  if math.abs(change) > EXACT - math.abs(changes[#changes]) then
    changes[#changes + 1] = 0
  end
  changes[#changes] = changes[#changes] + change
  sum = sum + math.abs(change)
end

for i = first_member, #ARGV, 2 do
  local member, delta = ARGV[i], tonumber(ARGV[i + 1])
  if not delta or not string.find(ARGV[i + 1], '^%-?%d+$') or member == '' then
    return redis.error_reply('BADARG append: malformed member or delta')
  end
  weight = weight + math.abs(delta)
  if merge == 'add' then
    account(delta)
  else
    members[#members + 1] = not values[member] and member or nil
    values[member] = values[member] and extreme(values[member], delta) or delta
  end
end
if weight > EXACT then
  return redis.error_reply('BADARG append: a batch beyond 2^53')
end

local opened = redis.call('ZCARD', open) > 0
for _, member in ipairs(members) do
  local score = redis.call('ZSCORE', open, member)
  if score then
    account(-tonumber(score))
    values[member] = extreme(tonumber(score), values[member])
  end
  account(values[member])
end
local state = redis.call('HMGET', meta, 'accepted', 'events', 'open_weight')
local accepted = tonumber(state[1] or 0)
-- The weight (sum of absolute deltas) bounds every score of the generation; only beyond it scores are looked at.
local open_weight = merge == 'add' and (opened and tonumber(state[3] or 0) or 0) + weight or 0
if math.abs(accepted) + sum > TOTAL_MAX or tonumber(state[2] or 0) + events > TOTAL_MAX then
  return redis.error_reply('RANGE append: the running total of this shard is full')
end
if open_weight > EXACT then
  -- A member given twice in a batch would pass one by one, so its deltas are added up first.
  local deltas = {}
  for i = first_member, #ARGV, 2 do
    deltas[ARGV[i]] = (deltas[ARGV[i]] or 0) + tonumber(ARGV[i + 1])
  end
  for member, delta in pairs(deltas) do
    if math.abs(tonumber(redis.call('ZSCORE', open, member) or 0) + delta) > EXACT then
      return {'FULL', safe}
    end
  end
end
local seqs = redis.call('HGET', open_seqs, writer)
local first = seqs and string.match(seqs, '^(%d+)%-') or ARGV[2]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))

if marker then
  redis.call('SET', marker, value, 'EX', ARGV[6])
  if #ARGV < first_member then
    return {'OK', safe}
  end
end
if merge == 'add' then
  for i = first_member, #ARGV, 2 do
    redis.call('ZINCRBY', open, ARGV[i + 1], ARGV[i])
  end
end
for _, member in ipairs(members) do
  redis.call('ZADD', open, string.format('%.0f', values[member]), member)
end
redis.call('HSET', open_seqs, writer, first .. '-' .. ARGV[2])
if not marker then
  redis.call('HSET', writers, writer, ARGV[2])
end
if not opened then
  redis.call('HSET', meta, 'opened_ms', now)
end
redis.call('HSET', meta, 'last_append_ms', now)
redis.call('HSET', meta, 'open_weight', string.format('%.17g', open_weight))
for _, change in ipairs(changes) do
  redis.call('HINCRBY', meta, 'accepted', string.format('%.0f', change))
end
redis.call('HINCRBY', meta, 'events', ARGV[4])
return {'OK', safe}
