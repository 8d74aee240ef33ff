-- What is reserved as a round of seeding ends: by workers that joined it, and by those that are gone.
-- KEYS: generation, leader, workers that joined, open tickets.  ARGV: round, key prefix of tickets.
-- Answers {workers, tickets, {id, key, window, key, window...}...}, or {0} if that round is over.

if redis.call('GET', KEYS[1]) or redis.call('GET', KEYS[2]) ~= ARGV[1] then return {0} end
local answer = {0, 0}
for _, id in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  local raw = redis.call('GET', ARGV[2] .. id)
  local ticket = raw and raw ~= 'done' and cmsgpack.unpack(raw)
  -- a live worker that does not know a ticket has closed it
  if ticket and (ticket[4] == ARGV[1] or redis.call('SISMEMBER', KEYS[3], ticket[1]) == 0) then
    local said = {id}
    for _, held in ipairs(ticket[5]) do
      if held[2] == '1' and held[4] then
        said[#said + 1], said[#said + 2] = held[1], held[4]
      end
    end
    answer[#answer + 1] = said
  else
    if ticket then redis.call('DEL', ARGV[2] .. id) end
    redis.call('ZREM', KEYS[4], id)
  end
end
answer[1], answer[2] = redis.call('SCARD', KEYS[3]), redis.call('ZCARD', KEYS[4])
return answer
