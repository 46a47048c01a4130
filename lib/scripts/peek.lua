-- peek: what one member has pending, and which generations that belongs to; PROTOCOL "One key, exact".
--
-- ARGV: member. Returns {open score, sealed score, sealed_gen, prev_gen}, '' for what is not there. What a reset set
-- aside is not pending: it is on its way into quarantine.
local open, sealed, meta = KEYS[1], KEYS[2], KEYS[3]
local state = redis.call('HMGET', meta, 'sealed_gen', 'prev_gen', 'set_aside')

return {redis.call('ZSCORE', open, ARGV[1]) or '', not state[3] and redis.call('ZSCORE', sealed, ARGV[1]) or '',
  state[1] or '', state[2] or ''}
