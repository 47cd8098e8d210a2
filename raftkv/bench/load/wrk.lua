-- The requests of raftkv.bench.workload, for wrk: puts or gets of keys that are there.
-- Arguments: put|get, a file with one key a line, bytes of a value.

local requests = {}

function init(arguments)
  local method, names, value_bytes = arguments[1], arguments[2], tonumber(arguments[3])
  local body = method == "put" and string.rep("v", value_bytes) or nil
  for key in io.lines(names) do
    requests[#requests + 1] = wrk.format(string.upper(method), "/v1/kv/" .. key, nil, body)
  end
  math.randomseed(1)
end

function request()
  return requests[math.random(#requests)]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.stderr:write(string.format(
    '{"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"failed":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
