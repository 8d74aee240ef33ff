-- Give back what was reserved so long ago that no request can still run, and no journal told what became of it: its
-- worker died before it went upstream, or its disk is gone. Should a row turn up yet, the ledger's totals have it.
-- KEYS: generation, open tickets.  ARGV: generation, now or '', age ms, key prefix of tickets, of buckets, most.
-- Answers {tickets}, or {-1} other generation.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {-1} end
local before = clock(ARGV[2]) - tonumber(ARGV[3])
local ids = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', whole(before), 'LIMIT', 0, tonumber(ARGV[6]))
for _, id in ipairs(ids) do
  local raw = redis.call('GET', ARGV[4] .. id)
  for _, held in ipairs(raw and raw ~= 'done' and cmsgpack.unpack(raw)[5] or {}) do
    local key = ARGV[5] .. held[1]
    local state = held[2] == '1' and held[4] and redis.call('GET', key)
    local a = state and allowance_read(state)
    if a and a.window == held[4] then
      a.held = a.held - held[3]
      allowance_write(key, a)
    end
  end
  redis.call('SET', ARGV[4] .. id, 'done', 'PX', DONE_MS)
  redis.call('ZREM', KEYS[2], id)
end
return {#ids}
