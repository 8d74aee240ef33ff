-- Make allowances count at least what the ledger says. A request's row may be in the ledger before it is settled here,
-- so what is reserved counts too, unless `strictly`: then only what is settled does.
-- KEYS: generation, then the allowances.  ARGV: generation, strictly, then for each: window, amount.
-- Answers {1}, or {-1} other generation.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {-1} end
for i = 2, #KEYS do
  local window, least = ARGV[i * 2 - 1], tonumber(ARGV[i * 2])
  local raw = redis.call('GET', KEYS[i])
  local a = raw and allowance_read(raw) or {window = window, settled = 0, held = 0}
  allowance_roll(a, window)
  if a.window == window then a.settled = math.max(a.settled, ARGV[2] == '1' and least or least - a.held) end
  allowance_write(KEYS[i], a)
end
return {1}
