-- Decides calls in their order. Each spends all of its charges, or none of them; or, where they are
-- recorded, what is there of them.
--
-- KEYS     the bucket of every charge
-- ARGV[1]  for every call the number of its charges, and for each charge its bucket's tolerance and
--          what it costs, in ticks of 1/16 µs
-- ARGV[2]  "record" where others allowed the calls already, so that none is refused
-- answers  for every charge how far its bucket was ahead when it was asked, in ticks

local time = redis.call('TIME')
-- from the middle of what doubles count without gaps, so that ticks are exact from 2020 to 2055
local now = ((time[1] - 2147483648) * 1000000 + time[2]) * 16
local record = ARGV[2] == 'record'
local number = string.gmatch(ARGV[1], '%d+')
local answers = {}

for charges in number do
  local tats, granted = {}, true -- a bucket may be charged twice
  for _ = 1, charges do
    local key = KEYS[#answers + 1]
    local tolerance, cost = tonumber(number()), tonumber(number())
    local tat = tats[key]
    if not tat then
      local kept = redis.pcall('GET', key)
      -- what is no number of ours is a bucket that was never charged, and is replaced
      tat = type(kept) == 'string' and tonumber(string.match(kept, '^-?%d+$')) or now
    end
    -- beyond the tolerance where the clock was set back, or the rate was changed
    local ahead = math.min(math.max(tat - now, 0), tolerance)
    local after = ahead + cost
    if record then after = math.min(after, tolerance) end
    granted = granted and after <= tolerance
    tats[key] = now + after
    answers[#answers + 1] = string.format('%.0f', ahead)
  end
  if granted then
    for key, tat in pairs(tats) do
      local full_ms = math.ceil((tat - now) / 16000) + 1
      redis.call('SET', key, string.format('%.0f', tat), 'PX', string.format('%.0f', full_ms))
    end
  end
end

return table.concat(answers, ' ')
