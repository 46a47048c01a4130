-- peek: what one key has pending, and which generations that belongs to; PROTOCOL "One key, exact".
--
-- ARGV: key, a glob for its members in time buckets ('' = it has none), members of a set that may be looked at for it.
-- Returns {open sum, sealed sum, sealed_gen, prev_gen, whole}, '' for what is not there; whole is 0 when a set was too
-- large, and only the key's own member is in its sum. What a reset set aside is not pending: it is on its way into
-- quarantine.
local open, sealed, meta = KEYS[1], KEYS[2], KEYS[3]
local state = redis.call('HMGET', meta, 'sealed_gen', 'prev_gen', 'set_aside')
local whole = '1'

local function sum(set)
  local own = redis.call('ZSCORE', set, ARGV[1])
  local total, found, cursor = tonumber(own or 0), own, '0'
  if ARGV[2] == '' then return own or '' end
  if redis.call('ZCARD', set) > tonumber(ARGV[3]) then
    whole = '0'
    return own or ''
  end
  local seen = {} -- ZSCAN may give a member twice
  repeat
    local page = redis.call('ZSCAN', set, cursor, 'MATCH', ARGV[2], 'COUNT', 1000)
    cursor = page[1]
    for i = 1, #page[2], 2 do
      if not seen[page[2][i]] then
        seen[page[2][i]] = true
        total, found = total + tonumber(page[2][i + 1]), true
      end
    end
  until cursor == '0'
  return found and string.format('%.0f', total) or ''
end

return {sum(open), not state[3] and sum(sealed) or '', state[1] or '', state[2] or '', whole}
