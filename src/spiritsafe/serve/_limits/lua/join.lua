-- A live worker tells what it has reserved, for the generation that a round of seeding makes.
-- KEYS: generation, leader, workers that joined, open tickets, then tickets.
-- ARGV: round, worker, now or '', lease ms, last, then for each ticket: id, number of buckets, and for each of those:
--       key, kind, amount, window.  last: with this call the worker has told all.
-- Answers {1}, or {0} if that round is over.

if redis.call('GET', KEYS[1]) or redis.call('GET', KEYS[2]) ~= ARGV[1] then return {0} end
local now = clock(ARGV[3])
local a = 6
for i = 5, #KEYS do
  local id, held = ARGV[a], {}
  for b = 1, tonumber(ARGV[a + 1]) do
    local at = a + 2 + (b - 1) * 4
    local kind, mark = ARGV[at + 1], ARGV[at + 3]
    if kind == '0' then mark = false end  -- rates start afresh
    held[b] = {ARGV[at], kind, tonumber(ARGV[at + 2]), mark}
  end
  a = a + 2 + #held * 4
  local ticket = {ARGV[2], now + tonumber(ARGV[4]), true, ARGV[1], held}
  redis.call('SET', KEYS[i], cmsgpack.pack(ticket), 'PX', TICKET_MS)
  redis.call('ZADD', KEYS[4], whole(now), id)
end
if ARGV[5] == '1' then
  redis.call('SADD', KEYS[3], ARGV[2])
  redis.call('PEXPIRE', KEYS[3], DONE_MS)
end
return {1}
