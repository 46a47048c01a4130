-- catch_up: nothing is pending here, and Postgres has more than this Redis knows to have released: it went back in time, or
-- was emptied. Its running totals go on from what Postgres has; PROTOCOL step "catch up".
--
-- ARGV: prev_gen and accepted as the caller saw them ('' and 0 = not there), the newest generation in the ledger, and what
-- accepted, accepted_at_seal, events and events_at_seal are with that.
-- Returns {CAUGHT_UP}; {GONE} when something is pending, or is not as the caller saw it: then a flush deals with it.
local open, sealed, meta, open_seqs, sealed_seqs = KEYS[1], KEYS[2], KEYS[3], KEYS[6], KEYS[7]

if #ARGV ~= 7 or ARGV[3] == '' then
  return redis.error_reply('BADARG catch_up: malformed arguments')
end
for i = 4, 7 do
  if not string.find(ARGV[i], '^%-?%d+$') then
    return redis.error_reply('BADARG catch_up: malformed total')
  end
end
local state = redis.call('HMGET', meta, 'prev_gen', 'accepted', 'sealed_gen')
if (state[1] or '') ~= ARGV[1] or (state[2] or '0') ~= ARGV[2] or state[3]
    or redis.call('EXISTS', open, sealed, open_seqs, sealed_seqs) > 0 then
  return {'GONE'}
end
redis.call('HSET', meta, 'prev_gen', ARGV[3], 'accepted', ARGV[4], 'accepted_at_seal', ARGV[5], 'events', ARGV[6],
  'events_at_seal', ARGV[7])
return {'CAUGHT_UP'}
