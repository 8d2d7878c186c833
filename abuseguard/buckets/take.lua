-- Takes from buckets in steps, each of them all or none, one step after the other.
--
-- KEYS: the buckets of all steps in order; all in one hash slot where the server is a cluster.
-- ARGV: for each step, how many buckets it has, then for each of them cost_ns and capacity_ns.
-- Returns, for each step, "1" (taken) or "0" (denied), and for each of its buckets the nanoseconds until it is full,
-- after a step that was taken or as it stands; steps are separated by ";". One text, since a Lua number would be cut
-- to an integer, and an array is dearer to read.
--
-- A bucket is the instant at which it is full, in nanoseconds since the epoch. A Lua number holds only 2^53 exactly,
-- too few for such an instant, so seconds and nanoseconds are kept apart and only differences are computed: exact for
-- buckets that fill within 104 days.
local time = redis.call('TIME')
local now_s, now_ns = tonumber(time[1]), tonumber(time[2]) * 1000
local stored = redis.call('MGET', unpack(KEYS))
local times_to_full = {} -- by key, since a later step may meet a bucket of an earlier one
for i = 1, #KEYS do
  local time_to_full = 0
  if stored[i] then
    local s, ns = tonumber(string.sub(stored[i], 1, -10)), tonumber(string.sub(stored[i], -9))
    -- What is no instant was not written by us; its bucket counts as full, and is written anew.
    time_to_full = s and ns and math.max(0, (s - now_s) * 1e9 + (ns - now_ns)) or 0
  end
  times_to_full[KEYS[i]] = time_to_full
end

local replies = {}
local key, argument = 1, 1
while argument <= #ARGV do
  local buckets = tonumber(ARGV[argument])
  local allowed = true
  local costs = {}
  for i = 0, buckets - 1 do
    local cost, capacity = tonumber(ARGV[argument + 2 * i + 1]), tonumber(ARGV[argument + 2 * i + 2])
    costs[i] = cost
    allowed = allowed and times_to_full[KEYS[key + i]] + cost <= capacity
  end
  local reply = {allowed and '1' or '0'}
  for i = 0, buckets - 1 do
    local name = KEYS[key + i]
    if allowed and costs[i] > 0 then
      local time_to_full = times_to_full[name] + costs[i]
      times_to_full[name] = time_to_full
      local ns = now_ns + time_to_full
      local full_at = string.format('%.0f%09.0f', now_s + math.floor(ns / 1e9), ns % 1e9)
      -- A key that has expired is a full bucket. Rounded up: a time to live of 0 would be refused.
      redis.call('SET', name, full_at, 'PX', string.format('%.0f', math.ceil(time_to_full / 1e6)))
    end
    reply[i + 2] = string.format('%.0f', times_to_full[name])
  end
  replies[#replies + 1] = table.concat(reply, ' ')
  key, argument = key + buckets, argument + 1 + 2 * buckets
end
return table.concat(replies, ';')
