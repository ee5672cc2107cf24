"""What runs inside Redis: the limiter's arithmetic as Lua, on Redis' own clock, each script all or nothing.

A quota is one key. RATE: two doubles, units used and the microsecond of that. DAY, MONTH: two doubles, the window's
stamp and units used in it. SLOTS: a sorted set of leases by the millisecond at which they expire. Every key expires
when it says nothing any more. The scripts decide; who calls them and what their replies mean is `shared.py`'s business.
They do the same as `limits.py`, and run on Redis 6.2 and newer.
"""

from gateway.redis import Script

# Microseconds are counted from late 2023, so that doubles have room for their fractions.
CLOCK = """
local time = redis.call('TIME')
local seconds = tonumber(time[1])
local now = (seconds - 1700000000) * 1000000 + tonumber(time[2])
local now_ms = math.floor(seconds * 1000 + time[2] / 1000)
"""

# Days since 1970 to a date, after Howard Hinnant's `civil_from_days`.
CALENDAR = """
local function stamps(seconds)
  local days = math.floor(seconds / 86400) + 719468
  local era = math.floor(days / 146097)
  local day = days - era * 146097
  local year = math.floor(
    (day - math.floor(day / 1460) + math.floor(day / 36524) - math.floor(day / 146096)) / 365)
  day = day - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * day + 2) / 153)
  day = day - math.floor((153 * month + 2) / 5) + 1
  month = month < 10 and month + 3 or month - 9
  year = year + era * 400 + (month <= 2 and 1 or 0)
  local stamp = year * 100 + month
  return stamp * 100 + day, stamp
end
"""

STATE = """
local function drained(key, rate)
  local raw = redis.call('GET', key)
  if not raw then return 0 end
  local used, at = struct.unpack('<dd', raw)
  if now > at then used = used - (now - at) * rate end
  return used > 0 and used or 0
end

local function write_rate(key, used, rate)
  if used > 0 then
    redis.call('SET', key, struct.pack('<dd', used, now), 'PX', math.ceil(used / rate / 1000) + 1)
  else
    redis.call('DEL', key)
  end
end

-- A clock that was set back takes along what is used.
local function turned(key, stamp)
  local raw = redis.call('GET', key)
  if not raw then return 0 end
  local at, used = struct.unpack('<dd', raw)
  return stamp > at and 0 or used
end

local function write_budget(key, used, stamp)
  redis.call('SET', key, struct.pack('<dd', stamp, used), 'EX', stamp > 999999 and 172800 or 2764800)
end
"""

# KEYS: rates, budgets, slots. ARGV: lease in ms, number of rates, number of budgets; of each rate the place of its
# amount, size, and units that drain in a microsecond; of each budget the place, size, and 1 for a month; of each slots
# the size; then requests, tokens, cost, and the lease.
# Nothing is written before all is decided, and first what Redis refuses where its memory is full: all or nothing.
# Reply: 1 or 0, the day, seconds since 1970, and what is used of each key, of rates in thousandths, rounded up.
RESERVE = Script.of(
    CLOCK
    + CALENDAR
    + STATE
    + """
local lease_ms, rates, budgets = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local last = #ARGV
local amounts = {tonumber(ARGV[last - 3]), tonumber(ARGV[last - 2]), tonumber(ARGV[last - 1])}
local day, month = stamps(seconds)
local reply, used, fits, arg = {1, day, seconds}, {}, true, 4
for i = 1, rates do
  local amount, size = amounts[tonumber(ARGV[arg])], tonumber(ARGV[arg + 1])
  used[i] = drained(KEYS[i], tonumber(ARGV[arg + 2]))
  reply[i + 3] = math.ceil(used[i] * 1000)
  if used[i] + amount > size + 0.000001 then fits = false end
  arg = arg + 3
end
for i = rates + 1, rates + budgets do
  local amount, size = amounts[tonumber(ARGV[arg])], tonumber(ARGV[arg + 1])
  used[i] = turned(KEYS[i], ARGV[arg + 2] == '1' and month or day)
  reply[i + 3] = used[i]
  if used[i] + amount > size then fits = false end
  arg = arg + 3
end
for i = rates + budgets + 1, #KEYS do
  used[i] = redis.call('ZCOUNT', KEYS[i], '(' .. now_ms, '+inf')
  reply[i + 3] = used[i]
  if used[i] + 1 > tonumber(ARGV[arg]) then fits = false end
  arg = arg + 1
end
if not fits then
  reply[1] = 0
  return reply
end
arg = 4
for i = 1, rates do
  local amount, rate = amounts[tonumber(ARGV[arg])], tonumber(ARGV[arg + 2])
  reply[i + 3] = math.ceil((used[i] + amount) * 1000)
  write_rate(KEYS[i], used[i] + amount, rate)
  arg = arg + 3
end
for i = rates + 1, rates + budgets do
  reply[i + 3] = used[i] + amounts[tonumber(ARGV[arg])]
  write_budget(KEYS[i], reply[i + 3], ARGV[arg + 2] == '1' and month or day)
  arg = arg + 3
end
for i = rates + budgets + 1, #KEYS do
  redis.call('ZADD', KEYS[i], now_ms + lease_ms, ARGV[last])
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now_ms)
  redis.call('PEXPIRE', KEYS[i], lease_ms)
  reply[i + 3] = used[i] + 1
end
return reply
"""
)

# KEYS and ARGV as above, then, in place of the lease: the day of the reservation, what was reserved (requests, tokens,
# cost), and the lease; requests, tokens and cost are what is given back. Slots come first: with memory full, what
# frees some must go before what takes some. Reply: 1.
SETTLE = Script.of(
    CLOCK
    + CALENDAR
    + STATE
    + """
local rates, budgets = tonumber(ARGV[2]), tonumber(ARGV[3])
local last = #ARGV
for i = rates + budgets + 1, #KEYS do
  redis.call('ZREM', KEYS[i], ARGV[last])
end
local back = {tonumber(ARGV[last - 7]), tonumber(ARGV[last - 6]), tonumber(ARGV[last - 5])}
local begun = tonumber(ARGV[last - 4])
local demand = {tonumber(ARGV[last - 3]), tonumber(ARGV[last - 2]), tonumber(ARGV[last - 1])}
local day, month = stamps(seconds)
local arg = 4
for i = 1, rates do
  local amount = back[tonumber(ARGV[arg])]
  if amount ~= 0 then
    local rate = tonumber(ARGV[arg + 2])
    write_rate(KEYS[i], drained(KEYS[i], rate) - amount, rate)
  end
  arg = arg + 3
end
for i = rates + 1, rates + budgets do
  local place, stamp, made = tonumber(ARGV[arg]), day, begun
  if ARGV[arg + 2] == '1' then stamp, made = month, math.floor(begun / 100) end
  local amount = back[place]
  -- A call counts in the window in which it ends, as it does in the records of usage.
  if made < stamp then amount = amount - demand[place] end
  if amount ~= 0 then
    write_budget(KEYS[i], math.max(0, turned(KEYS[i], stamp) - amount), stamp)
  end
  arg = arg + 3
end
return 1
"""
)

# KEYS: the gateways, then sets of slots. ARGV: lease in ms, this gateway, then pairs of the place of a key and a lease.
# Leases that are not there any more are put back. Reply: how many gateways there are.
EXTEND = Script.of(
    CLOCK
    + """
local lease_ms = tonumber(ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
redis.call('ZADD', KEYS[1], now_ms + lease_ms, ARGV[2])
for i = 3, #ARGV, 2 do
  redis.call('ZADD', KEYS[tonumber(ARGV[i])], now_ms + lease_ms, ARGV[i + 1])
end
for i = 1, #KEYS do
  redis.call('PEXPIRE', KEYS[i], lease_ms)
end
return redis.call('ZCARD', KEYS[1])
"""
)

# KEYS: budgets. ARGV: of each the stamp of a window, and units used in it at least. Reply: 1.
SEED = Script.of(
    CLOCK
    + CALENDAR
    + STATE
    + """
local day, month = stamps(seconds)
for i = 1, #KEYS do
  local stamp, least = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  if (stamp == day or stamp == month) and turned(KEYS[i], stamp) < least then
    write_budget(KEYS[i], least, stamp)
  end
end
return 1
"""
)
