-- Begin a generation: allowances from the ledger, plus what is still reserved.
-- KEYS: generation, leader, workers that joined, open tickets.
-- ARGV: round, new generation, key prefix of tickets, of the new generation's buckets, workers and tickets gathered,
--       number of tickets that the ledger has, their ids, then for each allowance: key, window, amount.
-- Answers {1}, {0} if that round is over, {2} if more has joined since it was gathered.

if redis.call('GET', KEYS[1]) or redis.call('GET', KEYS[2]) ~= ARGV[1] then return {0} end
if redis.call('SCARD', KEYS[3]) ~= tonumber(ARGV[5]) or redis.call('ZCARD', KEYS[4]) ~= tonumber(ARGV[6]) then
  return {2}
end
local committed = tonumber(ARGV[7])
for i = 8, 7 + committed do
  redis.call('SET', ARGV[3] .. ARGV[i], 'done', 'PX', DONE_MS)
  redis.call('ZREM', KEYS[4], ARGV[i])
end
local allowances = {}
for i = 8 + committed, #ARGV, 3 do
  allowances[ARGV[i]] = {window = ARGV[i + 1], settled = tonumber(ARGV[i + 2]), held = 0}
end
for _, id in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  local key = ARGV[3] .. id
  local ticket = cmsgpack.unpack(redis.call('GET', key))
  for _, held in ipairs(ticket[5]) do
    local a = allowances[held[1]]
    if held[2] == '0' then
      held[4] = false
    elseif held[2] == '2' and held[4] then
      redis.call('ZADD', ARGV[4] .. held[1], whole(ticket[2]), id)
      redis.call('PEXPIRE', ARGV[4] .. held[1], DONE_MS)
    elseif a and held[4] == a.window then
      a.held = a.held + held[3]
    else
      held[4] = false
    end
  end
  ticket[3] = true
  redis.call('SET', key, cmsgpack.pack(ticket), 'PX', TICKET_MS)
end
for key, a in pairs(allowances) do allowance_write(ARGV[4] .. key, a) end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[2], KEYS[3])
return {1}
