// Restart, drill and stop, each after its question; there only if `raylaunch ui` allows them.

const actions = {title: "", groups: "", asked: null};

function initActions() {
  byId("action-restart").addEventListener("click", () => ask("restart"));
  byId("action-drill").addEventListener("click", () => ask("drill"));
  byId("action-stop").addEventListener("click", () => ask("stop"));
  byId("confirm-name").addEventListener("input", allowConfirmed);
  byId("confirm-no").addEventListener("click", () => byId("confirm").close());
  byId("confirm-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
}

function takeGroups(live) {
  actions.title = live.deployment;
  const names = live.groups.map((group) => group.name);
  const key = JSON.stringify(names);
  if (key === actions.groups) return;
  actions.groups = key;
  const place = byId("action-group");
  const chosen = place.value;
  place.replaceChildren(make("option", {value: ""}, "all"), ...names.map((name) => make("option", {value: name}, name)));
  if (names.includes(chosen)) place.value = chosen;
}

function takeActions(given) {
  byId("actions").hidden = false;
  byId("to-actions").hidden = false;
  byId("action-stop").hidden = !given.names.includes("stop");
  const faults = byId("action-fault");
  if (!faults.childElementCount) {
    faults.append(...given.faults.map((fault) => make("option", {value: fault.name, title: fault.what}, fault.name)));
  }
  const is_running = given.run !== null && given.run.exit_code === null;
  for (const name of given.names) byId(`action-${name}`).disabled = is_running;
  show("actions", given.run, (run) => (run === null ? nothing("no action was asked for") : runPart(run)));
}

function endActions() {
  for (const button of document.querySelectorAll("#actions button")) button.disabled = true;
  if (byId("confirm").open) byId("confirm").close();
}

function runPart(run) {
  let outcome = state("busy", "running");
  if (run.exit_code !== null) outcome = state(run.exit_code === 0 ? "good" : "bad", `exit code ${run.exit_code}`);
  return [make("p", {role: "status"}, make("code", null, run.command), " ", outcome),
    make("p", {class: "dim"}, `since ${clock(run.began_at)}`),
    run.output ? make("pre", {tabindex: "0", "aria-label": "Output of the command"}, run.output) : null];
}

function ask(action) {
  const group = action === "stop" ? "" : byId("action-group").value;
  const fault = action === "drill" ? byId("action-fault").value : "";
  const place = group ? `group ${group} of ${actions.title}` : actions.title;
  const effects = {
    restart: `The servers of ${place} are stopped and started again, one group after the other. ` +
      "Requests wait, or fail where there is no gateway.",
    drill: `The fault ${fault} is injected into ${group ? place : `the first group of ${actions.title}`}, and its recovery is measured. ` +
      "Requests fail meanwhile.",
    stop: `Every server of ${actions.title} is stopped. Its address answers no longer, and this page ends.`,
  };
  const titles = {restart: "Restart", drill: "Drill", stop: "Stop"};
  actions.asked = {action, group, fault};
  byId("confirm-title").textContent = `${titles[action]} ${action === "stop" ? actions.title : place}?`;
  byId("confirm-effect").textContent = effects[action];
  byId("confirm-wanted").textContent = actions.title;
  byId("confirm-yes").textContent = titles[action];
  byId("confirm-problem").hidden = true;
  byId("confirm-name").value = "";
  allowConfirmed();
  byId("confirm").showModal();
  byId("confirm-name").focus();
}

function allowConfirmed() {
  byId("confirm-yes").disabled = byId("confirm-name").value !== actions.title;
}

async function send() {
  const confirm = byId("confirm-name").value;
  if (confirm !== actions.title) return;
  const problem = byId("confirm-problem");
  byId("confirm-yes").disabled = true;
  try {
    const answer = await fetch("action", {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({...actions.asked, confirm}),
    });
    if (answer.ok) {
      byId("confirm").close();
      return;
    }
    problem.textContent = await explain(answer);
  } catch {
    problem.textContent = "the page is not connected to raylaunch";
  }
  problem.hidden = false;
  allowConfirmed();
}

async function explain(answer) {
  const text = await answer.text();
  if (!(answer.headers.get("Content-Type") || "").startsWith("application/json")) return text.trim();
  const error = JSON.parse(text);
  return [error.what, error.todo].filter(Boolean).join("; ");
}
