-- peek: what one key has pending, and which generations that belongs to; PROTOCOL "One key, exact".
--
-- ARGV: key, a glob for its members in time buckets ('' = it has none), members of a set that may be looked at for it,
-- how its members merge: add, max or min.
-- Returns {open, sealed, sealed_gen, prev_gen, whole}, '' for what is not there; whole is 0 when a set was too
-- large, and only the key's own member is in it. What a reset set aside is not pending: it is on its way into
-- quarantine.
local open, sealed, meta = KEYS[1], KEYS[2], KEYS[3]
local state = redis.call('HMGET', meta, 'sealed_gen', 'prev_gen', 'set_aside')
local whole = '1'

local function merge(a, b)
  if ARGV[4] == 'add' then return a + b end
  return (ARGV[4] == 'max') == (a > b) and a or b
end

local function merged(set)
  local own = redis.call('ZSCORE', set, ARGV[1])
  local total, cursor = own and tonumber(own), '0'
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
        local score = tonumber(page[2][i + 1])
        total = total and merge(total, score) or score
      end
    end
  until cursor == '0'
  return total and string.format('%.0f', total) or ''
end

return {merged(open), not state[3] and merged(sealed) or '', state[1] or '', state[2] or '', whole}
