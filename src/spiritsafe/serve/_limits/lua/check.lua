-- Run on every new connection. A Redis that was restarted, or is another, may have lost what it held, if only the last
-- second: its generation ends, and the next one is seeded from the ledger.
-- KEYS: generation.  ARGV: this server's run id.

local generation = redis.call('GET', KEYS[1])
if generation and string.match(generation, ':(%w+)$') ~= ARGV[1] then redis.call('DEL', KEYS[1]) end
return {1}
