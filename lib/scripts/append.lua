-- append: a writer's next batch joins the open generation; PROTOCOL step "append".
--
-- ARGV: writer, seq, known_durable, events, then member and delta in turn (deltas: whole numbers, decimal). A batch
-- without members fills the place of one whose content its writer no longer has.
-- With a client's token there is an eighth key, its marker, and behind events come the marker's value and its TTL in
-- seconds; the writer is made of the token, its seq is 1. The marker is all that Redis keeps of it (nothing in writers
-- or durable), so it goes by itself. A batch without members leaves nothing but the marker.
-- With an odd number of arguments the last one says how this shard's members merge, if they do not add up: max or
-- min. What was accepted then is by how much the scores have changed, so that it is what all sets and the ledger hold.
-- Returns OK|DUP and the writer's durable seq; GAP and the last seq that is here; OTHER when the marker has another
-- value; FULL when a score would leave the range in which a double is exact: the batch fits again after the next seal.
-- Redis does not undo a script that fails half way, so everything that can fail is looked at before the first
-- write: the reads below also make a key of the wrong type fail here.
-- Scores are not raised, by a ZINCRBY for each member, but set, by one ZADD; so is all else, up to 2^53. It costs Redis
-- less, a third where it keeps a file of what it does. And Redis 7.0, when it dies while it writes to that file, may keep
-- the first of a script's writes and carry them out at the start after the next. Set twice they are what they were.
local open, meta, writers, durable, open_seqs = KEYS[1], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local writer, seq, known, events = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local marker, mark, ttl = KEYS[8], ARGV[5], tonumber(ARGV[6])
local first_member = marker and 7 or 5
local merge = #ARGV % 2 == 1 and table.remove(ARGV) or 'add'
local EXACT = 9007199254740991 -- 2^53 - 1: a sum that should be 2^53 + 1 comes out as 2^53
local TOTAL_MAX = 9.2e18
local CHUNK = 2000 -- members in a command: Lua's stack holds 8,000 words

local function whole(n)
  return n and n >= 0 and n <= EXACT and n == math.floor(n)
end

if not writer or writer == '' or not whole(seq) or seq < 1 or not whole(known) or not whole(events)
    or (merge ~= 'add' and merge ~= 'max' and merge ~= 'min')
    or (marker and (seq ~= 1 or not mark or mark == '' or not whole(ttl) or ttl < 1)) then
  return redis.error_reply('BADARG append: malformed arguments')
end

local marked = marker and redis.call('GET', marker)
if marked then
  return {marked == mark and 'DUP' or 'OTHER', '0'}
end

-- What is open is here, whatever became of the writer's entry: a Redis that evicts keys may have thrown that away.
local seqs = redis.call('HGET', open_seqs, writer)
local first, newest = string.match(seqs or '', '^(%d+)%-(%d+)$')
local last = math.max(tonumber(redis.call('HGET', writers, writer) or 0), tonumber(newest or 0), known)
local safe = redis.call('HGET', durable, writer) or '0'
if seq <= last then
  return {'DUP', safe}
end
if seq ~= last + 1 then
  return {'GAP', string.format('%.0f', last)}
end

-- Of each member: what the batch brings, then what its score becomes; and the members in turn.
local values, members, count, weight, sum = {}, {}, 0, 0, 0
local function extreme(a, b)
  return (merge == 'max') == (a > b) and a or b
end

for i = first_member, #ARGV, 2 do
  local member, delta = ARGV[i], tonumber(ARGV[i + 1])
  local before = values[member]
  if not delta or not string.find(ARGV[i + 1], '^%-?%d+$') or member == '' then
    return redis.error_reply('BADARG append: malformed member or delta')
  end
  if not before then
    count = count + 1
    members[count] = member
    values[member] = delta
  elseif merge == 'add' then
    values[member] = before + delta
  else
    values[member] = extreme(before, delta)
  end
  weight = weight + math.abs(delta)
  sum = sum + delta
end
if weight > EXACT then
  return redis.error_reply('BADARG append: a batch beyond 2^53')
end

-- The change of accepted, in parts that a double adds up exactly; and what bounds it.
local changes, bound = {0}, 0
local function account(change)
  if math.abs(change) > EXACT - math.abs(changes[#changes]) then
    changes[#changes + 1] = 0
  end
  changes[#changes] = changes[#changes] + change
  bound = bound + math.abs(change)
end

local opened = redis.call('ZCARD', open) > 0
for from = 1, count, CHUNK do
  local to = math.min(from + CHUNK - 1, count)
  local scores = opened and redis.call('ZMSCORE', open, unpack(members, from, to)) or {}
  for i = from, to do
    local member, score = members[i], tonumber(scores[i - from + 1] or nil)
    if merge ~= 'add' then
      account(-(score or 0))
      values[member] = score and extreme(score, values[member]) or values[member]
      account(values[member])
    elseif score then
      values[member] = values[member] + score
      if math.abs(values[member]) > EXACT then
        return {'FULL', safe}
      end
    end
  end
end
if merge == 'add' then
  account(sum)
end
local state = redis.call('HMGET', meta, 'accepted', 'events')
local accepted, all_events = tonumber(state[1] or 0), tonumber(state[2] or 0) + events
if math.abs(accepted) + bound > TOTAL_MAX or all_events > TOTAL_MAX then
  return redis.error_reply('RANGE append: the running total of this shard is full')
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))

if marker and count == 0 then
  redis.call('SET', marker, mark, 'EX', ARGV[6])
  return {'OK', safe}
end
for from = 1, count, CHUNK do
  local scored, n = {}, 0
  for i = from, math.min(from + CHUNK - 1, count) do
    scored[n + 1], scored[n + 2] = string.format('%d', values[members[i]]), members[i]
    n = n + 2
  end
  redis.call('ZADD', open, unpack(scored))
end
redis.call('HSET', open_seqs, writer, (first or ARGV[2]) .. '-' .. ARGV[2])
local fields = {'last_append_ms', now}
if not opened then
  fields[3], fields[4] = 'opened_ms', now
end
local n = #fields
if math.abs(accepted) + bound <= EXACT and all_events <= EXACT then
  fields[n + 1], fields[n + 2] = 'accepted', string.format('%d', accepted + changes[1])
  fields[n + 3], fields[n + 4] = 'events', string.format('%d', all_events)
else
  for _, change in ipairs(changes) do
    redis.call('HINCRBY', meta, 'accepted', string.format('%.0f', change))
  end
  redis.call('HINCRBY', meta, 'events', ARGV[4])
end
redis.call('HSET', meta, unpack(fields))
if marker then
  redis.call('SET', marker, mark, 'EX', ARGV[6])
else
  redis.call('HSET', writers, writer, ARGV[2])
end
return {'OK', safe}
