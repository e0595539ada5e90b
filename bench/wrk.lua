-- Sends one image, and prints what came back as a line of JSON.
--
--   wrk -t1 -c CONNECTIONS -d SECONDS -s wrk.lua URL -- FILE [RATE]
--
-- Without RATE every connection sends as soon as it has its answer. With it requests arrive at
-- random, RATE per second whatever the server does: each takes the next free connection, and its
-- latency counts from its arrival. Both times travel in a header that the server returns.

local ffi = require("ffi")
ffi.cdef("typedef struct { long s, ns; } timespec; int clock_gettime(int, timespec *);")
local clock = ffi.new("timespec")
local threads = {}

local function now_ms()
  ffi.C.clock_gettime(1, clock)
  return tonumber(clock.s) * 1e3 + tonumber(clock.ns) / 1e6
end

local function json(value)
  if type(value) ~= "table" then return tostring(value) end
  local parts = {}
  for key, each in pairs(value) do parts[#parts + 1] = ('"%s":%s'):format(key, json(each)) end
  return "{" .. table.concat(parts, ",") .. "}"
end

function setup(thread) threads[#threads + 1] = thread end

function init(args)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "image/png"
  wrk.body = assert(io.open(args[1], "rb")):read("*a")
  if args[2] then arrive_at(tonumber(args[2])) end
end

function arrive_at(rate)
  local header, arrivals = "x-amzn-sagemaker-custom-attributes", {}
  local first, last = 1, 0
  -- How many answers of each status came after so many milliseconds.
  tally = { sent = 0, latest_start_ms = 0, rate = rate, from_arrival = {}, from_sending = {} }

  function delay()
    local now = now_ms()
    tally.next_ms = (tally.next_ms or now) - 1e3 / rate * math.log(1 - math.random())
    last = last + 1
    arrivals[last] = { at = tally.next_ms, late = tally.next_ms < now }
    return math.max(0, tally.next_ms - now)
  end

  function request()
    local arrival, now = arrivals[first], now_ms()
    arrivals[first], first = nil, first + 1
    tally.sent = tally.sent + 1
    if not arrival.late then
      tally.latest_start_ms = math.max(tally.latest_start_ms, now - arrival.at)
    end
    wrk.headers[header] = ("%.3f %.3f"):format(arrival.at, now)
    return wrk.format()
  end

  function response(status, headers)
    local now, times = now_ms(), ""
    for name, value in pairs(headers) do
      if name:lower() == header then times = value end
    end
    local arrived, sent = times:match("(%S+) (%S+)")
    for name, since in pairs({ from_arrival = arrived, from_sending = sent }) do
      local counts, ms = tally[name][status] or {}, math.floor(now - tonumber(since))
      counts[ms] = (counts[ms] or 0) + 1
      tally[name][status] = counts
    end
  end
end

function done(summary, latency)
  local tally = threads[1]:get("tally") or {}
  if tally.rate then tally.unsent = math.max(0, (now_ms() - tally.next_ms) / 1e3 * tally.rate) end
  tally.answered, tally.errors = summary.requests, summary.errors
  tally.seconds = summary.duration / 1e6
  tally.p50_ms, tally.p99_ms = latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
  print(json(tally))
end
