-- Replace what a ticket reserved by what was taken. A ticket that is not there was closed before: nothing happens.
-- KEYS: generation, ticket, open tickets, then the ticket's buckets.
-- ARGV: generation, now or '', id, bury, then for each bucket: size, taken, near.
-- bury: leave a mark that makes a reservation of this id fail which is still under way to us.
-- Answers {1, i, settled...} the allowances that went over their near limit, {0} no such ticket, {2} it was closed, and
-- Redis remembers that, {-1} other generation.

local raws = redis.call('MGET', unpack(KEYS))  -- one call; of what is no text it says nothing
if raws[1] ~= ARGV[1] then return {-1} end
local now, id = clock(ARGV[2]), ARGV[3]
local raw = raws[2]
if raw == 'done' then return {2} end
if not raw then
  if ARGV[4] == '1' then redis.call('SET', KEYS[2], 'done', 'PX', DONE_MS) end
  return {0}
end
local ticket = cmsgpack.unpack(raw)
local crossed = {1}
for i, held in ipairs(ticket[5]) do
  local key, kind, amount, mark = KEYS[i + 3], held[2], held[3], held[4]
  local a = 5 + (i - 1) * 3
  local size, taken, near = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  if mark then
    local state = raws[i + 3]
    if kind == '2' then
      redis.call('ZREM', key, id)
    elseif state and kind == '0' then
      local r = rate_read(state)
      rate_drain(r, now, size)
      rate_close(r, mark, amount - taken)
      rate_write(key, r, size)
    elseif state then
      local s = allowance_read(state)
      if s.window == mark then
        s.held = s.held - amount
        if s.settled < near and near <= s.settled + taken then
          crossed[#crossed + 1], crossed[#crossed + 2] = i, s.settled + taken
        end
        s.settled = s.settled + taken
        allowance_write(key, s)
      end
    end
  end
end
if ticket[3] then redis.call('SET', KEYS[2], 'done', 'PX', DONE_MS) else redis.call('DEL', KEYS[2]) end
redis.call('ZREM', KEYS[3], id)
return crossed
