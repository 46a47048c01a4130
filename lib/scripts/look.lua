-- look: what a shard holds, for who watches counterd every few seconds; read-only, and cheap whatever the shard holds.
--
-- ARGV: the sealed generation whose total the caller knows ('' = none).
-- Returns {now_ms, members open, members sealed, accepted, accepted_at_seal, opened_ms, sealed_opened_ms, sealed_ms,
-- last_release_ms, sealed_gen, total of what is sealed}, '' for what is not there. The total is only given for a
-- generation that is new to the caller and small: nobody writes to it any more, so once is enough.
local open, sealed, meta = KEYS[1], KEYS[2], KEYS[3]
local MEMBERS_MAX = 1000
local time = redis.call('TIME')
local state = redis.call('HMGET', meta, 'accepted', 'accepted_at_seal', 'opened_ms', 'sealed_opened_ms', 'sealed_ms',
  'last_release_ms', 'sealed_gen')
local members = redis.call('ZCARD', sealed)
local total = ''

if state[7] and state[7] ~= ARGV[1] and members <= MEMBERS_MAX then
  local page, sum = redis.call('ZRANGE', sealed, 0, -1, 'WITHSCORES'), 0
  for i = 2, #page, 2 do
    sum = sum + tonumber(page[i])
  end
  total = string.format('%.0f', sum)
end
local reply = {string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)),
  string.format('%d', redis.call('ZCARD', open)), string.format('%d', members)}
for i = 1, 7 do
  reply[#reply + 1] = state[i] or ''
end
reply[#reply + 1] = total
return reply
