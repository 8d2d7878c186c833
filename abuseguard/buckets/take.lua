-- Takes from several buckets, all or none.
--
-- KEYS: the buckets, all in one hash slot.
-- ARGV: for each bucket, cost_ns and capacity_ns.
-- Returns "1" (taken) or "0" (denied), and for each bucket the nanoseconds until it is full, after a step that was
-- taken or as it stands; as one text, since a Lua number would be cut to an integer and an array is dearer to read.
--
-- A bucket is the instant at which it is full, in nanoseconds since the epoch. A Lua number holds only 2^53 exactly,
-- too few for such an instant, so seconds and nanoseconds are kept apart and only differences are computed: exact for
-- buckets that fill within 104 days.
local time = redis.call('TIME')
local now_s, now_ns = tonumber(time[1]), tonumber(time[2]) * 1000
local stored = redis.call('MGET', unpack(KEYS))
local times_to_full = {}
local allowed = true
for i = 1, #KEYS do
  local time_to_full = 0
  if stored[i] then
    local s, ns = tonumber(string.sub(stored[i], 1, -10)), tonumber(string.sub(stored[i], -9))
    time_to_full = math.max(0, (s - now_s) * 1e9 + (ns - now_ns))
  end
  times_to_full[i] = time_to_full
  if time_to_full + tonumber(ARGV[2 * i - 1]) > tonumber(ARGV[2 * i]) then
    allowed = false
  end
end
local reply = {allowed and '1' or '0'}
for i = 1, #KEYS do
  local cost = tonumber(ARGV[2 * i - 1])
  if allowed and cost > 0 then
    times_to_full[i] = times_to_full[i] + cost
    local ns = now_ns + times_to_full[i]
    local full_at = string.format('%.0f%09.0f', now_s + math.floor(ns / 1e9), ns % 1e9)
    -- A key that has expired is a full bucket. Rounded up: a time to live of 0 would be refused.
    redis.call('SET', KEYS[i], full_at, 'PX', string.format('%.0f', math.ceil(times_to_full[i] / 1e6)))
  end
  reply[i + 1] = string.format('%.0f', times_to_full[i])
end
return table.concat(reply, ' ')
