-- Take a request's amounts from all buckets, or from none.
-- KEYS: generation, ticket, open tickets, then the buckets.
-- ARGV: generation, now or '', id, worker, lease ms, force, length of the buckets' key prefix,
--       then for each bucket: kind, size, amount, window, shadow.
-- force: the request was let through while the state was away; it is counted, not judged, and rates are left alone.
-- Answers {1, now, level...} granted, {0, now, level, window...} refused, {-1} other generation, {-2, i...} allowances
-- that are unknown, {-3} a ticket of this id was made before.

local raws = redis.call('MGET', unpack(KEYS))  -- one call; of what is no text it says nothing
if raws[1] ~= ARGV[1] then return {-1} end
if raws[2] then return {-3} end
local now, id, force = clock(ARGV[2]), ARGV[3], ARGV[6] == '1'
local deadline = now + tonumber(ARGV[5])
local buckets, unknown, granted = {}, {-2}, true
for i = 1, #KEYS - 3 do
  local a = 8 + (i - 1) * 5
  local kind, size, amount, window = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), ARGV[a + 3]
  local b = {key = KEYS[i + 3], kind = kind, size = size, amount = amount, keep = true, level = 0}
  if kind == '0' then
    local raw = raws[i + 3]
    b.state = raw and rate_read(raw) or rate_new(now)
    b.level = rate_drain(b.state, now, size)
    b.over = b.level + amount * PERIOD_MS > size * PERIOD_MS
    b.keep = not force
  elseif kind == '1' then
    local raw = raws[i + 3]
    if raw then
      b.state = allowance_read(raw)
      allowance_roll(b.state, window)
      b.keep = not force or window == b.state.window
      b.level = b.state.settled + b.state.held
      b.over = b.level + amount > size
    else
      unknown[#unknown + 1] = i
    end
  else
    b.level = redis.call('ZCARD', b.key)
    b.over = b.level + amount > size
    if b.over then
      redis.call('ZREMRANGEBYSCORE', b.key, '-inf', whole(now))
      b.level = redis.call('ZCARD', b.key)
      b.over = b.level + amount > size
    end
  end
  if b.over and amount > 0 and not force then
    if ARGV[a + 4] == '1' then
      b.keep = kind == '1'  -- a shadow lets in what it would, so that what it records is what it would do
    else
      granted = false
    end
  end
  buckets[i] = b
end
if #unknown > 1 then return unknown end
if not granted then
  local answer = {0, now}
  for i, b in ipairs(buckets) do
    answer[i * 2 + 1], answer[i * 2 + 2] = b.level, b.kind == '1' and b.state.window or ''
  end
  return answer
end
local answer, held = {1, now}, {}
for i, b in ipairs(buckets) do
  answer[i + 2] = b.level
  local mark = false
  if b.keep then
    if b.kind == '0' then
      mark = rate_take(b.state, b.amount)
      rate_write(b.key, b.state, b.size)
    elseif b.kind == '1' then
      b.state.held = b.state.held + b.amount
      mark = b.state.window
      allowance_write(b.key, b.state)
    else
      mark = 0
      redis.call('ZADD', b.key, whole(deadline), id)
      redis.call('PEXPIRE', b.key, ARGV[5])
    end
  end
  held[i] = {string.sub(b.key, tonumber(ARGV[7]) + 1), b.kind, b.amount, mark}
end
redis.call('SET', KEYS[2], cmsgpack.pack({ARGV[4], deadline, force, '', held}), 'PX', TICKET_MS)
redis.call('ZADD', KEYS[3], whole(now), id)
return answer
