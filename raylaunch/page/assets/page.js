// Takes the parts of the page, from its own file or from the server, and shows them.

const SILENT_S = 20;
const SILENT = {
  what: `no data has come within ${SILENT_S} s`, why: "a proxy between this browser and raylaunch may buffer answers",
  todo: "connect without it, or forward the port with `ssh -N -L`",
};

function takeLive(live, frozen) {
  showHead(live, frozen);
  showTopology(live);
  showRanks(live, frozen);
  takeServers(live);
  takeGroups(live);
}

function takeHistory(history) {
  showStarts(history);
  showFailures(history);
  show("events", history.events, eventsTable);
}

function takeFacts(facts) {
  showDiagnosis(facts);
  show("findings", facts.findings, findingsTable);
  showBenchmarks(facts);
  show("plan", facts.plans, (plans) => (plans.length ? plans.flatMap(planPart) : nothing("there is no plan yet")));
  takeDiagnoses(facts.diagnoses);
}

function eventsTable(events) {
  if (!events.length) return nothing("no event is kept");
  const rows = [...events].reverse().map((event) => [
    clock(event.at), event.group, event.attempt, event.kind,
    aboutServer(event),
  ]);
  return [table("Newest first, by the controller's clock, in the time zone of this browser",
    ["At", "Group", "Attempt", "Kind", "What"], rows, [null, null, "number", null, "text"])];
}

function findingsTable(findings) {
  if (!findings.length) return nothing("the checks found nothing");
  const levels = {error: "bad", warning: "warn", info: "off"};
  const rows = findings.map((one) => [
    state(levels[one.level] || "off", one.level), one.id, one.where, one.what, one.todo]);
  return [table("Findings of the last check", ["Level", "Id", "Where", "What", "To do"], rows,
    [null, null, null, "text", "text"])];
}

function showDiagnosis(facts) {
  show("diagnosis", [facts.diagnoses, facts.errors, facts.unread], ([diagnoses, errors, unread]) => {
    const built = [...diagnoses.map(diagnosisCard), ...errors.map(errorCard)];
    if (unread.length) built.push(make("p", {class: "problem"}, `could not be read: ${unread.join("; ")}`));
    return built.length ? built : nothing("no failure was diagnosed");
  });
}

function diagnosisCard(found) {
  const place = found.server === null ? found.group : `${found.group}, server ${found.server}`;
  return make("div", {class: "card bad"},
    make("p", null, make("strong", null, found.id), ` ${found.kind}, ${place}`,
      found.certain ? "" : ", not certain"),
    found.line ? make("pre", null, found.line) : null,
    make("p", null, found.cause),
    found.remedy ? make("p", null, make("strong", null, "Remedy: "), found.remedy) : null,
    found.detail ? make("p", {class: "dim"}, found.detail) : null);
}

function errorCard(error) {
  return make("div", {class: "card bad"},
    make("p", null, make("strong", null, `${error.about}: `), error.what),
    error.why ? make("p", null, make("strong", null, "Why: "), error.why) : null,
    error.evidence ? make("pre", null, error.evidence) : null,
    error.todo ? make("p", null, make("strong", null, "Next: "), error.todo) : null);
}

function planPart(view) {
  return [make("h3", null, `${view.group}: ${view.plan.model}`), ...view.plan.servers.map((server) => {
    const id = `plan-${view.group}-${server.index}`;
    const versions = Object.entries(view.versions[server.index] || {}).map(([name, value]) => `${name} ${value}`);
    const flags = server.flags.map((flag) => [flag.name || "(model)", flag.value === null ? "" : flag.value, flag.origin]);
    const variables = Object.entries(server.env).map(([name, given]) => [name, given.value, given.origin]);
    const kinds = [null, "text", "text"];
    return make("details", {id}, make("summary", {id: `${id}-summary`},
      `server ${server.index} on ${server.node.ip}, ${server.role}, NPUs ${ranges(server.devices)}`),
    versions.length ? make("p", {class: "dim"}, versions.join(", ")) : null,
    table("Flags of vllm serve", ["Flag", "Value", "Origin"], flags, kinds),
    table("Variables", ["Variable", "Value", "Origin"], variables, kinds));
  })];
}

function showLost(error) {
  const place = byId("lost");
  place.hidden = error === null;
  place.textContent = error === null ? "" : [error.what, error.why, error.todo].filter(Boolean).join("; ");
}

function follow() {
  const source = new EventSource("stream");
  // A proxy that collects an answer before it passes it on passes nothing of a stream.
  let has_answer = false;
  setTimeout(() => {
    if (!has_answer) showLost(SILENT);
  }, 1000 * SILENT_S);
  const take = (name, use) => source.addEventListener(name, (event) => {
    if (!has_answer) showLost(null);
    has_answer = true;
    use(JSON.parse(event.data));
  });
  take("live", (live) => takeLive(live, false));
  take("history", takeHistory);
  take("facts", takeFacts);
  take("lost", showLost);
  take("actions", takeActions);
  take("stopped", (title) => {
    source.close();
    endActions();
    showLost({what: `${title} was stopped`, why: "", todo: "this page shows its last state"});
  });
  source.addEventListener("error", () => {
    has_answer = true;
    const why = source.readyState === EventSource.CLOSED ? "the link is no longer valid" : "trying again";
    showLost({what: "the page is not connected to raylaunch", why, todo: "`raylaunch ui` gives another link"});
  });
  source.addEventListener("open", () => showLost(null));
}

const block = byId("frozen");
if (block) {
  const page = JSON.parse(block.textContent);
  initLogs(page.logs);
  takeLive(page.live, true);
  takeHistory(page.history);
  takeFacts(page.facts);
  byId("source").textContent = `Written by raylaunch ${page.version} report. Nothing in it is live.`;
} else {
  initLogs(null);
  byId("source").textContent = "Served by raylaunch ui on loopback.";
  initActions();
  follow();
}
