-- Corrects buckets after the fact: charges more, into debt if it must, or gives back, up to full.
--
-- KEYS: the buckets, all in one hash slot.
-- ARGV: for each bucket, delta_ns. See take.lua for how a bucket is kept.
local time = redis.call('TIME')
local now_s, now_ns = tonumber(time[1]), tonumber(time[2]) * 1000
local stored = redis.call('MGET', unpack(KEYS))
for i = 1, #KEYS do
  local time_to_full = 0
  if stored[i] then
    local s, ns = tonumber(string.sub(stored[i], 1, -10)), tonumber(string.sub(stored[i], -9))
    time_to_full = s and ns and math.max(0, (s - now_s) * 1e9 + (ns - now_ns)) or 0
  end
  time_to_full = time_to_full + tonumber(ARGV[i])
  if time_to_full > 0 then
    local ns = now_ns + time_to_full
    local full_at = string.format('%.0f%09.0f', now_s + math.floor(ns / 1e9), ns % 1e9)
    redis.call('SET', KEYS[i], full_at, 'PX', string.format('%.0f', math.ceil(time_to_full / 1e6)))
  else
    redis.call('DEL', KEYS[i])
  end
end
return 1
