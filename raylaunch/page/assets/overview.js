// The head of the page, the topology, the ranks.

const KEPT_SPEEDS = 60;
const courses = new Map(); // "group/rank" -> {at, tokens, speeds}
let announced = "";

function showHead(live, frozen) {
  byId("title").textContent = live.deployment;
  document.title = `${live.deployment}: ${live.phase}`;
  const facts = [
    ` for ${seconds(live.now - live.phase_since)}`,
    `recipe ${live.recipe}`, `model ${live.served_name}`, `attempt ${live.attempt}`, count(live.restarts, "restart"),
  ];
  byId("headline").replaceChildren(state(live.state, live.phase), facts.join(", "));
  const command = live.operation ? `under way: ${live.operation}` : "";
  const fallback = live.fallback && `${live.fallback} serves instead of ${live.recipe} until the lost node is back`;
  for (const line of [fallback, command, live.endpoint, ...live.waiting_for.map((one) => `waiting for ${one}`)]) {
    if (line) byId("headline").append(make("br"), line);
  }
  if (frozen) byId("headline").append(make("br"), `as of ${clock(live.now)}`);
  // A screen reader hears changes of phase, not every second.
  const news = `${live.deployment} is ${live.phase}`;
  if (news !== announced) byId("announced").textContent = announced = news;
}

function showTopology(live) {
  const data = {
    groups: live.groups.map((one) => ({...one, phase_since: 0})),
    // Ages change all the time; they are in the tables of `status`, and would rebuild this each second.
    hosts: live.hosts.map((host) => ({...host, servers: host.servers.map(
      (one) => ({...one, agent_at: null, health_at: null}))})),
    gateway: live.gateway,
  };
  show("topology", data, (given) => {
    const built = [];
    if (given.gateway) built.push(make("h3", null, "Gateway"), gatewayCard(given.gateway));
    built.push(make("h3", null, "Groups"), make("div", {class: "cards"}, ...given.groups.map(groupCard)));
    built.push(make("h3", null, "Hosts"));
    if (!given.hosts.length) built.push(...nothing("no server has a place yet"));
    built.push(make("div", {class: "cards"}, ...given.hosts.map(hostCard)));
    return built;
  });
}

function gatewayCard(gateway) {
  const counts = `${count(gateway.requests, "request")}, ${gateway.queue} in the queue, ${gateway.held} held, ` +
    `${gateway.repeated} repeated, ${gateway.continued} continued, ${gateway.failed} failed, ${gateway.rejected} rejected`;
  return make("div", {class: `card ${gateway.state}`},
    make("p", null, state(gateway.state, gateway.nodes.length ? "runs" : "not up"), ` ${gateway.endpoint}`),
    make("p", {class: "dim"}, gateway.nodes.length ? `on ${gateway.nodes.join(", ")}, ${gateway.policy}` : ""),
    make("p", null, counts));
}

function groupCard(group) {
  return make("div", {class: `card ${group.state}`},
    make("p", null, make("strong", null, group.name), " ", state(group.state, group.phase)),
    make("p", {class: "dim"}, [group.role, `attempt ${group.attempt}`, count(group.restarts, "restart"),
      count(group.servers, "server")].join(", ")),
    group.endpoint ? make("p", null, group.endpoint) : null,
    group.relaunch_at ? make("p", null, `next launch at ${clock(group.relaunch_at)}`) : null,
    ...group.waiting_for.map((one) => make("p", null, `waiting for ${one}`)));
}

function hostCard(host) {
  return make("div", {class: `card ${host.state}`},
    make("p", null, make("strong", null, host.ip), ` ${host.interface} `, state(host.state)),
    ...host.servers.map(serverPart));
}

function serverPart(server) {
  const facts = [server.role, `${server.ranks.length === 1 ? "rank" : "ranks"} ${ranges(server.ranks)}`];
  if (server.pid !== null) facts.push(`pid ${server.pid}`);
  if (server.health !== null) facts.push(`/health ${server.health}`);
  const npus = server.devices.map((device) => make("li", {class: server.state}, device));
  return make("div", null,
    make("p", null, `server ${server.group}/${server.index} `, state(server.state, server.stage)),
    make("p", {class: "dim"}, facts.join(", ")),
    npus.length ? make("ul", {class: "npus", "aria-label": `NPUs of server ${server.index}`}, ...npus) : null,
    ...server.notes.map((note) => make("p", {class: "problem"}, note)),
    make("p", {class: "dim"}, server.log));
}

function ranges(numbers) {
  if (numbers.length > 2 && numbers.at(-1) - numbers[0] === numbers.length - 1) return `${numbers[0]}-${numbers.at(-1)}`;
  return numbers.join(", ");
}

// Tokens a second from two readings of a counter; a counter that went back belongs to a new server.
function takeSpeeds(ranks) {
  for (const rank of ranks) {
    if (rank.at === null) continue;
    const name = `${rank.group}/${rank.rank}`;
    const course = courses.get(name);
    if (!course || rank.tokens < course.tokens) {
      courses.set(name, {at: rank.at, tokens: rank.tokens, speeds: []});
    } else if (rank.at > course.at + 0.5) {
      course.speeds.push((rank.tokens - course.tokens) / (rank.at - course.at));
      course.speeds.splice(0, Math.max(0, course.speeds.length - KEPT_SPEEDS));
      course.at = rank.at;
      course.tokens = rank.tokens;
    }
  }
}

function showRanks(live, frozen) {
  takeSpeeds(live.ranks);
  const data = live.ranks.map((rank) => {
    const course = courses.get(`${rank.group}/${rank.rank}`);
    return {...rank, at: null, speeds: course ? [...course.speeds] : []};
  });
  show("ranks", data, (ranks) => {
    if (!ranks.length) return nothing("no rank has reported yet");
    const header = ["Rank", "State", "Running", "Waiting", "KV cache", "Prefix hits", "Tokens", "Finished"];
    const kinds = [null, null, "number", "number", "number", "number", "number", "number"];
    if (!frozen) {
      header.push("Tokens/s", "Course");
      kinds.push("number", null);
    }
    return [table("Data-parallel ranks", header, ranks.map((rank) => rankRow(rank, frozen)), kinds)];
  });
}

function rankRow(rank, frozen) {
  const percent = (share) => (share === null ? "-" : `${Math.round(share * 100)} %`);
  const row = [`${rank.group}/${rank.rank}`, state(rank.state, rank.note), rank.running, rank.waiting,
    percent(rank.kv_usage), percent(rank.hit_ratio), rank.tokens, rank.finished];
  if (frozen) return row;
  const speeds = rank.speeds;
  return [...row, speeds.length ? Math.round(speeds.at(-1)) : "-", sparkline(speeds)];
}

function sparkline(speeds) {
  if (speeds.length < 2) return "";
  const top = Math.max(...speeds, 1);
  const points = speeds.map((speed, index) =>
    `${((index / (KEPT_SPEEDS - 1)) * 120).toFixed(1)},${(19 - (speed / top) * 18).toFixed(1)}`);
  const label = `between ${Math.round(Math.min(...speeds))} and ${Math.round(Math.max(...speeds))} tokens a second`;
  return draw("svg", {class: "spark", viewBox: "0 0 120 20", role: "img", "aria-label": label},
    draw("polyline", {points: points.join(" ")}));
}
