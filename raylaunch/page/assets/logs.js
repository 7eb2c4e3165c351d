// The log of one server: followed live, or its end in a frozen page; search; the diagnosed line.

const KEPT_LINES = 5000;
const log = {source: null, servers: "", diagnosed: null, matches: [], current: -1, frozen: null};

function initLogs(frozen) {
  log.frozen = frozen;
  byId("log-follow-label").hidden = frozen !== null;
  byId("log-server").addEventListener("change", openLog);
  byId("log-search").addEventListener("input", search);
  byId("log-form").addEventListener("submit", (event) => {
    event.preventDefault();
    step(1);
  });
  byId("log-previous").addEventListener("click", () => step(-1));
  byId("log-diagnosed").addEventListener("click", () => {
    const line = byId("log").querySelector(".diagnosed");
    if (line) reveal(line);
  });
  byId("log-follow").addEventListener("change", scrollDown);
}

function takeServers(live) {
  const names = live.hosts.flatMap((host) => host.servers.map((one) => `${one.group}/${one.index}`));
  const key = JSON.stringify(names);
  if (key === log.servers) return;
  log.servers = key;
  const chosen = byId("log-server").value;
  byId("log-server").replaceChildren(...names.map((name) => make("option", {value: name}, name)));
  if (names.includes(chosen)) byId("log-server").value = chosen;
  if (byId("log-server").value !== chosen) openLog();
}

function takeDiagnoses(diagnoses) {
  log.diagnoses = diagnoses;
  markDiagnosed([...byId("log").children]);
}

function openLog() {
  if (log.source) log.source.close();
  log.source = null;
  clearLog();
  const [group, server] = byId("log-server").value.split("/");
  if (!group) return;
  if (log.frozen !== null) {
    const found = log.frozen.find((one) => one.group === group && String(one.server) === server);
    addLines(found ? found.lines : []);
    byId("log-state").textContent = found ? `the last ${count(found.lines.length, "line")}` : "its log is not in this file";
    return;
  }
  const source = new EventSource(`log?group=${encodeURIComponent(group)}&server=${encodeURIComponent(server)}`);
  log.source = source;
  source.addEventListener("open", () => {
    // After a break the server sends the last lines again.
    clearLog();
    byId("log-state").textContent = "connected";
  });
  source.addEventListener("lines", (event) => addLines(JSON.parse(event.data)));
  source.addEventListener("lost", (event) => {
    byId("log-state").textContent = JSON.parse(event.data);
  });
  source.addEventListener("error", () => {
    const closed = source.readyState === EventSource.CLOSED;
    byId("log-state").textContent = closed ? "refused: too many open pages, or the link is no longer valid" : "not connected; trying again";
  });
}

function clearLog() {
  byId("log").replaceChildren();
  log.matches = [];
  log.current = -1;
  byId("log-diagnosed").hidden = true;
}

function addLines(lines) {
  const place = byId("log");
  const added = lines.map((text) => make("div", null, text));
  place.append(...added);
  while (place.childElementCount > KEPT_LINES) place.firstElementChild.remove();
  markDiagnosed(added);
  const wanted = byId("log-search").value;
  if (wanted) markMatches(added, wanted);
  if (byId("log-follow").checked && log.frozen === null) scrollDown();
}

function scrollDown() {
  if (byId("log-follow").checked) byId("log").scrollTop = byId("log").scrollHeight;
}

function markDiagnosed(lines) {
  const [group, server] = byId("log-server").value.split("/");
  const wanted = (log.diagnoses || [])
    .filter((one) => one.group === group && (one.server === null || String(one.server) === server))
    .map((one) => one.line.trim()).filter(Boolean);
  for (const line of lines) {
    const is_diagnosed = wanted.some((text) => line.textContent.includes(text));
    line.classList.toggle("diagnosed", is_diagnosed);
    if (is_diagnosed) line.setAttribute("aria-label", `diagnosed line: ${line.textContent}`);
    else line.removeAttribute("aria-label");
  }
  byId("log-diagnosed").hidden = byId("log").querySelector(".diagnosed") === null;
}

function search() {
  const wanted = byId("log-search").value;
  for (const line of byId("log").children) line.replaceChildren(line.textContent);
  log.matches = [];
  log.current = -1;
  if (wanted) markMatches([...byId("log").children], wanted);
  byId("log-state").textContent = wanted ? count(log.matches.length, "line") + " found" : "";
  if (log.matches.length) step(-1);
}

function markMatches(lines, wanted) {
  const small = wanted.toLowerCase();
  for (const line of lines) {
    const text = line.textContent;
    const lower = text.toLowerCase();
    // A letter whose lower case is longer would shift the places.
    if (lower.length !== text.length || !lower.includes(small)) continue;
    const parts = [];
    let from = 0;
    for (let at = lower.indexOf(small); at >= 0; at = lower.indexOf(small, from)) {
      parts.push(text.slice(from, at), make("mark", null, text.slice(at, at + small.length)));
      from = at + small.length;
    }
    parts.push(text.slice(from));
    line.replaceChildren(...parts);
    log.matches.push(line);
  }
}

function step(by) {
  log.matches = log.matches.filter((line) => line.isConnected);
  if (!log.matches.length) return;
  const total = log.matches.length;
  log.current = log.current < 0 ? (by > 0 ? 0 : total - 1) : (log.current + by + total) % total;
  byId("log-state").textContent = `line ${log.current + 1} of ${total} found`;
  reveal(log.matches[log.current]);
}

function reveal(line) {
  byId("log-follow").checked = false;
  for (const old of byId("log").querySelectorAll(".current")) old.classList.remove("current");
  line.classList.add("current");
  line.scrollIntoView({block: "nearest"});
}
