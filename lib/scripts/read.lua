-- read: a page of the sealed generation, only while it is still the one asked for; PROTOCOL step "read".
--
-- ARGV: gen, rank of the page's first member, members in a page.
-- Returns {PAGE, member and score in turn}, no members past the end; {GONE}: drop what you hold, start over.
local sealed, meta = KEYS[2], KEYS[3]
local from, count = tonumber(ARGV[2]), tonumber(ARGV[3])

if not from or not count or count < 1 then
  return redis.error_reply('BADARG read: malformed arguments')
end
if redis.call('HGET', meta, 'sealed_gen') ~= ARGV[1] then
  return {'GONE'}
end
return {'PAGE', redis.call('ZRANGE', sealed, from, from + count - 1, 'WITHSCORES')}
