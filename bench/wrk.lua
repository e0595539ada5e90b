-- Sends one image, and prints what came back as a line of JSON.
--
--   wrk -t1 -c CONNECTIONS -d SECONDS -s wrk.lua URL -- FILE [RATE]
--
-- Without RATE every connection sends as soon as it has its answer. With it requests arrive at
-- random, RATE per second whatever the server does: each takes the next free connection. Before the
-- JSON then stands a line for every answer: its status, and its milliseconds since the arrival and
-- since the sending. Both times travel in a header that the server returns.

local ffi = require("ffi")
ffi.cdef("typedef struct { long s, ns; } timespec; int clock_gettime(int, timespec *);")
local clock = ffi.new("timespec")
local threads = {}

local function now_ms()
  ffi.C.clock_gettime(1, clock)
  return tonumber(clock.s) * 1e3 + tonumber(clock.ns) / 1e6
end

function setup(thread) threads[#threads + 1] = thread end

function init(args)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "image/png"
  wrk.body = assert(io.open(args[1], "rb")):read("*a")
  if args[2] then arrive_at(tonumber(args[2])) end
end

function arrive_at(per_second)
  local header, arrivals, first, last = "x-amzn-sagemaker-custom-attributes", {}, 1, 0
  rate, latest_start_ms = per_second, 0

  function delay()
    local now = now_ms()
    next_ms = (next_ms or now) - 1e3 / rate * math.log(1 - math.random())
    last = last + 1
    arrivals[last] = { at = next_ms, waited = next_ms < now }
    return math.max(0, math.ceil(next_ms - now))
  end

  function request()
    local arrival, now = arrivals[first], now_ms()
    if not arrival then return wrk.format() end -- wrk looks at it once before the start
    arrivals[first], first = nil, first + 1
    if not arrival.waited then latest_start_ms = math.max(latest_start_ms, now - arrival.at) end
    wrk.headers[header] = ("%.3f %.3f"):format(arrival.at, now)
    return wrk.format()
  end

  function response(status, headers)
    local now = now_ms()
    for name, value in pairs(headers) do
      if name:lower() == header then
        local arrived, sent = value:match("(%S+) (%S+)")
        print(("answer %d %.1f %.1f"):format(status, now - arrived, now - sent))
      end
    end
  end
end

function done(summary, latency)
  local found, thread = {}, threads[1]
  local function note(name, value) found[#found + 1] = ('"%s": %s'):format(name, value) end
  for _, name in ipairs({ "connect", "read", "write", "status", "timeout" }) do
    note(name, summary.errors[name])
  end
  if thread:get("rate") then
    note("latest_start_ms", thread:get("latest_start_ms"))
    local late_s = (now_ms() - thread:get("next_ms")) / 1e3
    note("unsent", math.max(0, math.floor(late_s * thread:get("rate"))))
  end
  note("answered", summary.requests)
  note("seconds", summary.duration / 1e6)
  note("p50_ms", latency:percentile(50) / 1e3)
  note("p99_ms", latency:percentile(99) / 1e3)
  print("{" .. table.concat(found, ", ") .. "}")
end
