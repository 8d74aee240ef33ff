-- Shared by every script: time, and the two kinds of counters as text, every number whole and below 2^53.

local PERIOD_MS, MOST_LOWS = 60000, 16
local IDLE_MS = 259200000     -- an allowance unused for three days comes back from the ledger
local TICKET_MS = 604800000   -- reservations are closed, or reaped after a day
local DONE_MS = 172800000

local function clock(given)
  if given ~= '' then return tonumber(given) end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function whole(x) return string.format('%.0f', x) end

-- An allowance: "window settled held".
local function allowance_read(raw)
  local window, settled, held = string.match(raw, '^(%S+) (%d+) (%d+)$')
  return {window = window, settled = tonumber(settled), held = tonumber(held)}
end

local function allowance_write(key, a)
  redis.call('SET', key, string.format('%s %.0f %.0f', a.window, a.settled, a.held), 'PX', IDLE_MS)
end

local function allowance_roll(a, window)
  if window > a.window then a.window, a.settled, a.held = window, 0, 0 end
end

-- A rate, as _rate.py explains it: "level at born count fresh", then "last lowest open" for each of the lows.
local function rate_new(now)
  return {level = 0, at = now, born = now * 1000, count = now * 1000, fresh = 0, lows = {}}
end

local function rate_read(raw)
  local level, at, born, count, fresh, rest = string.match(raw, '^(%d+) (%d+) (%d+) (%d+) (%d+)(.*)$')
  local r = {level = tonumber(level), at = tonumber(at), born = tonumber(born), count = tonumber(count),
             fresh = tonumber(fresh), lows = {}}
  for last, lowest, open in string.gmatch(rest, '(%d+) (%d+) (%d+)') do
    r.lows[#r.lows + 1] = {tonumber(last), tonumber(lowest), tonumber(open)}
  end
  return r
end

local function rate_write(key, r, size)
  local text = string.format('%.0f %.0f %.0f %.0f %.0f', r.level, r.at, r.born, r.count, r.fresh)
  for _, low in ipairs(r.lows) do text = text .. string.format(' %.0f %.0f %.0f', low[1], low[2], low[3]) end
  local drained = size > 0 and math.ceil(r.level / size) or 0
  redis.call('SET', key, text, 'PX', whole(drained + PERIOD_MS))
end

local function rate_drain(r, now, size)
  if now > r.at then
    local level = r.level - (now - r.at) * size
    r.level, r.at = level > 0 and level or 0, now
  end
  return r.level
end

local function rate_merge(lows)
  local index, least = 1, lows[2][2] - lows[1][2]
  for i = 2, #lows - 1 do
    local gap = lows[i + 1][2] - lows[i][2]
    if gap < least then index, least = i, gap end
  end
  lows[index + 1][2] = lows[index][2]
  lows[index + 1][3] = lows[index + 1][3] + table.remove(lows, index)[3]
end

local function rate_note(r)
  local lows, counted = r.lows, r.fresh
  while #lows > 0 and lows[#lows][2] >= r.level do counted = counted + table.remove(lows)[3] end
  if counted > 0 then lows[#lows + 1] = {r.count, r.level, counted} end
  r.fresh = 0
  if #lows > MOST_LOWS then rate_merge(lows) end
end

local function rate_take(r, amount)
  if r.fresh > 0 or #r.lows > 0 then rate_note(r) end
  r.count, r.fresh, r.level = r.count + 1, r.fresh + 1, r.level + amount * PERIOD_MS
  return r.count
end

local function rate_close(r, number, excess)
  if not (r.born < number and number <= r.count) then return end
  local lows, index = r.lows, 1
  while index <= #lows and lows[index][1] < number do index = index + 1 end
  local entry = lows[index]
  local back = math.min(math.max(excess, 0) * PERIOD_MS, r.level)
  if entry then back = math.min(back, entry[2]) end
  r.level = r.level - back
  if entry then
    for i = index, #lows do lows[i][2] = lows[i][2] - back end
    entry[3] = entry[3] - 1
    while index > 1 and lows[index - 1][2] >= entry[2] do
      index = index - 1
      entry[3] = entry[3] + table.remove(lows, index)[3]
    end
    if entry[3] == 0 then table.remove(lows, index) end
  else
    r.fresh = r.fresh - 1
  end
  if excess < 0 then
    rate_note(r)
    r.level = r.level - excess * PERIOD_MS
  end
end
