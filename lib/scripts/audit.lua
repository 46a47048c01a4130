-- audit: what a shard's running totals say, and what its sets really hold, at one moment; read-only.
--
-- ARGV: how many members of a set are added up at most, which bounds how long Redis is held.
-- Returns {accepted, accepted_at_seal, sealed_gen, prev_gen, 1 when what is sealed was set aside by a reset, members
-- open, members sealed, sum of open, sum of sealed, durable}; '' for what is not there, and for a sum of too many members
-- or of what a double can't add up exactly. Durable is JSON, {"writer": "seq"}: which batches Redis knows to be in Postgres.
local open, sealed, meta, durable = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local most = tonumber(ARGV[1])
local EXACT = 9007199254740991 -- 2^53 - 1: a sum that should be 2^53 + 1 comes out as 2^53

if not most or most < 1 then
  return redis.error_reply('BADARG audit: malformed arguments')
end

local function add_up(key, members)
  local sum, weight = 0, 0
  if members > most then
    return ''
  end
  local scores = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 2, #scores, 2 do
    local score = tonumber(scores[i])
    if score ~= math.floor(score) then
      return ''
    end
    sum = sum + score
    weight = weight + math.abs(score)
  end
  return weight <= EXACT and string.format('%.0f', sum) or ''
end

local seqs, known = redis.call('HGETALL', durable), {}
for i = 1, #seqs, 2 do
  -- What came with a client's token is pruned, and nobody asks what of it is durable.
  if string.sub(seqs[i], 1, 5) ~= 'once:' then
    known[seqs[i]] = seqs[i + 1]
  end
end
local state = redis.call('HMGET', meta, 'accepted', 'accepted_at_seal', 'sealed_gen', 'prev_gen', 'set_aside')
local open_members, sealed_members = redis.call('ZCARD', open), redis.call('ZCARD', sealed)
return {state[1] or '', state[2] or '', state[3] or '', state[4] or '', state[5] or '',
  string.format('%d', open_members), string.format('%d', sealed_members),
  add_up(open, open_members), add_up(sealed, sealed_members), cjson.encode(known)}
