-- PUT or GET of messages of 100 bytes over HTTP, under the ids that `tolerex bench` uses:
--
--   wrk -t 1 -c 64 -d 3s -s benches/wrk.lua http://127.0.0.1:8080 -- PUT
--
-- At the end one line of JSON stands on standard output. `cargo bench --bench by_wrk` runs it.

local keys, first, bytes = 10000, 9000000000000000, 100
local requests, number = {}, 0

function init(args)
  wrk.method = args[1] or "GET"
  if wrk.method == "PUT" then
    wrk.body = string.rep("x", bytes)
  end
  -- Made once: the generator takes its time from the servers.
  for key = 1, keys do
    -- A number this large would else be written as 9e+15.
    requests[key] = wrk.format(nil, string.format("/kv/%.0f", first + key - 1))
  end
end

function request()
  number = number % keys + 1
  return requests[number]
end

function done(summary, latency, _)
  local errors = 0
  for _, count in pairs(summary.errors) do
    errors = errors + count
  end
  local found = '{"ops_per_s":%f,"p50_us":%f,"p99_us":%f,"ops":%d,"errors":%d}\n'
  local rate = summary.requests * 1e6 / summary.duration
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  io.write(string.format(found, rate, p50, p99, summary.requests, errors))
end
