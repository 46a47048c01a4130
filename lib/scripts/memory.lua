-- memory: whether Redis has room, for people who watch; read-only.
--
-- Returns {bytes used, maxmemory (0 = no limit), maxmemory-policy}, '' for what this Redis does not tell.
local info = redis.call('INFO', 'memory')

local function find(name)
  return string.match(info, name .. ':([^\r\n]*)') or ''
end
return {find('used_memory'), find('maxmemory'), find('maxmemory_policy')}
