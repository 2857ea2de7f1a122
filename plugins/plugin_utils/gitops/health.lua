-- Health of a ring in Argo CD, from the truth that Apiary publishes as a ConfigMap. Lua 5.1; needs the string library.
local kind = ((obj.metadata or {}).labels or {})["apiary.dev/kind"]
if kind ~= "truth" then
  return nil -- every other ConfigMap: no opinion
end

local MAX_AGE = @max_age@ -- seconds; 0: truth does not age
local AHEAD = 300 -- seconds that the publisher's clock may be before this one
local SHOWN = 5 -- policies and nodes named in a message

local function health(status, message)
  return { status = status, message = message }
end

if string == nil then
  return health("Degraded", 'set resource.customizations.useOpenLibs.ConfigMap to "true" in argocd-cm: this check reads JSON')
end

-- JSON text as Lua values, null as nil. An error is a text that says where.
local function decode(text)
  local at = 1
  local value

  local function fail(wanted)
    error(wanted .. " is missing at character " .. at, 0)
  end

  local function take(char)
    at = string.find(text, "[^ \t\r\n]", at) or #text + 1
    if string.sub(text, at, at) == char then
      at = at + 1
      return true
    end
    return false
  end

  local plain = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = " ", f = " ", n = " ", r = " ", t = " " }
  local function quoted()
    local parts = {}
    while true do
      local stop = string.find(text, '["\\]', at)
      if stop == nil then
        fail("the end of a text")
      end
      table.insert(parts, string.sub(text, at, stop - 1))
      at = stop + 1
      if string.sub(text, stop, stop) == '"' then
        return table.concat(parts)
      end
      local escape = string.sub(text, at, at)
      if string.find(text, "^u%x%x%x%x", at) then
        local code = tonumber(string.sub(text, at + 1, at + 4), 16)
        table.insert(parts, code < 128 and string.char(code) or "?")
        at = at + 5
      elseif plain[escape] then
        table.insert(parts, plain[escape])
        at = at + 1
      else
        fail("an escape")
      end
    end
  end

  local function object()
    local found = {}
    if take("}") then
      return found
    end
    repeat
      if not take('"') then
        fail("a key")
      end
      local key = quoted()
      if not take(":") then
        fail("a colon")
      end
      found[key] = value()
    until not take(",")
    if not take("}") then
      fail("}")
    end
    return found
  end

  local function array()
    local found = {}
    if take("]") then
      return found
    end
    repeat
      table.insert(found, value())
    until not take(",")
    if not take("]") then
      fail("]")
    end
    return found
  end

  local words = { ["true"] = true, ["false"] = false }
  function value()
    if take("{") then
      return object()
    elseif take("[") then
      return array()
    elseif take('"') then
      return quoted()
    end
    local word = string.match(text, "^[%w.+-]+", at) or ""
    local number = string.find(word, "^-?%d") and tonumber(word)
    if not number and words[word] == nil and word ~= "null" then
      fail("a value")
    end
    at = at + #word
    return number or words[word]
  end

  local result = value()
  take("")
  if at <= #text then
    fail("the end")
  end
  return result
end

-- Seconds since 1970 of a time in ISO 8601, or nil. os.time reads a table as local time, so it is of no use here.
local function epoch(text)
  local year, month, day, hour, minute, second, zone =
    string.match(text, "^(%d%d%d%d)%-(%d%d)%-(%d%d)T(%d%d):(%d%d):(%d%d)%.?%d*(.*)$")
  if year == nil then
    return nil
  end
  local offset = 0
  if zone ~= "Z" then
    local sign, hours, minutes = string.match(zone, "^([+-])(%d%d):(%d%d)$")
    if sign == nil then
      return nil
    end
    offset = (hours * 60 + minutes) * (sign == "+" and 60 or -60)
  end
  year, month = tonumber(year), tonumber(month)
  if month < 3 then
    year, month = year - 1, month + 12
  end
  local floor = math.floor
  local days = 365 * year + floor(year / 4) - floor(year / 100) + floor(year / 400) + floor((153 * month - 457) / 5) + day - 719469
  return days * 86400 + hour * 3600 + minute * 60 + second - offset
end

local text = (obj.data or {})["truth.json"]
if text == nil or text == "" then
  return health("Progressing", "no truth has been published for this ring yet")
end
local read, truth = pcall(decode, text)
if not read then
  return health("Degraded", "truth.json cannot be read: " .. tostring(truth))
end
if type(truth) ~= "table" or truth.format ~= "apiary.dev/truth/1" then
  return health("Degraded", "truth.json is not of the format apiary.dev/truth/1")
end

-- The wanted bundle is set with the ring's objects: what was published about another one says nothing of them.
local wanted = (obj.metadata.annotations or {})["apiary.dev/bundle"]
local bundle = tostring(truth.bundle or "")
if wanted ~= nil and wanted ~= bundle then
  return health(
    "Progressing",
    "the published truth is of bundle " .. string.sub(bundle, 1, 16) .. "; wanted is " .. string.sub(wanted, 1, 16)
  )
end
local published = epoch(tostring(truth.time))
if published == nil then
  return health("Degraded", "truth.json has no time that can be read: " .. tostring(truth.time))
end
local age = require("os").time() - published
if age < -AHEAD then
  return health("Degraded", "truth.json was published in the future, at " .. truth.time .. ": a clock is wrong")
end
if MAX_AGE > 0 and age > MAX_AGE then
  return health(
    "Degraded",
    "the truth is " .. math.floor(age / 60) .. " minutes old, more than " .. math.floor(MAX_AGE / 60) .. ": publish it again"
  )
end

local parts = {}
local function say(part)
  table.insert(parts, part)
end
local function list(lead, found, total)
  if total > 0 then
    local more = total > #found and " and " .. total - #found .. " more" or ""
    say(lead .. table.concat(found, ", ") .. more)
  end
end

if type(truth.reason) == "string" and truth.reason ~= "" then
  say(truth.reason)
end
say(tostring(truth.ready) .. " of " .. tostring(truth.nodes) .. " nodes ready")

local names, short, count = {}, {}, 0
for name in pairs(type(truth.policies) == "table" and truth.policies or {}) do
  table.insert(names, name)
end
table.sort(names)
for _, name in ipairs(names) do
  local policy = truth.policies[name]
  if type(policy) ~= "table" or type(policy.wanted) ~= "number" or type(policy.enabled) ~= "number" then
    return health("Degraded", "truth.json has no counts for policy " .. name)
  end
  if policy.enabled < policy.wanted then
    count = count + 1
    if count <= SHOWN then
      table.insert(short, name .. " (" .. tostring(policy.mode) .. ") on " .. policy.enabled .. " of " .. policy.wanted)
    end
  end
end
list("policies not everywhere: ", short, count)

local nodes = {}
local off = type(truth.off) == "table" and truth.off or {}
for position, one in ipairs(off) do
  if position <= SHOWN and type(one) == "table" then
    table.insert(nodes, tostring(one.node) .. " (" .. tostring(one.reason) .. ")")
  end
end
list("nodes off: ", nodes, tonumber(truth.off_total) or #off)

local verdicts = { healthy = "Healthy", progressing = "Progressing", degraded = "Degraded" }
local status = verdicts[truth.verdict]
if status == nil then
  return health("Degraded", "truth.json has the verdict " .. tostring(truth.verdict) .. "; known are healthy, progressing, degraded")
end
return health(status, table.concat(parts, "; "))
