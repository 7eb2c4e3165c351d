// Starts and failures as bars over time, each with the same as a table.

const SHOWN_TIMELINES = 20;
const PERCENT_PER_LETTER = 0.95; // of a bar 45 rem long
const STAGE_COLOURS = {
  pending: 7, checking: 6, starting: 0, launching: 7, spawned: 0, "engine connected": 5, weights: 1, "warm-up": 3,
  "engine up": 2, "API up": 2, "first token": 2,
};
const FAILURE_COLOURS = {
  detection: 4, "evidence and diagnosis": 3, decision: 7, "teardown and back-off": 1, "checks and plan": 6,
  "start of the servers": 0,
};
const OUTCOMES = {
  ready: "good", starting: "busy", failed: "bad", stopped: "off",
  recovered: "good", recovering: "warn", "failed again": "bad", "given up": "bad",
};

function showStarts(history) {
  show("starts", history.starts, (starts) => {
    if (!starts.length) return nothing("no start is among the kept events");
    return [...starts].reverse().slice(0, SHOWN_TIMELINES).map((start) => startFigure(start));
  });
}

function startFigure(start) {
  const rows = [{name: "group", bars: start.phases, slowest: false}];
  for (const server of start.servers) {
    rows.push({name: `server ${server.server}`, bars: server.bars, slowest: server.is_slowest});
  }
  const slowest = start.servers.find((server) => server.is_slowest);
  const note = slowest ? `Server ${slowest.server} was the last one to finish its own start.` : "";
  return timeline({
    id: `start-${start.group}-${start.attempt}`,
    title: `${start.group}, attempt ${start.attempt}`,
    outcome: start.outcome, at: start.at, until: start.until, rows, colours: STAGE_COLOURS,
    notes: [note],
  });
}

function showFailures(history) {
  show("failures", history.failures, (failures) => {
    if (!failures.length) return nothing("no failure is among the kept events");
    return [...failures].reverse().slice(0, SHOWN_TIMELINES).map((failure) => failureFigure(failure));
  });
}

function failureFigure(failure) {
  const server = failure.server === null ? "" : ` of server ${failure.server}`;
  const moments = [...failure.moments, ...failure.more].sort((one, other) => one.at - other.at);
  const rows = moments.map((moment) => [
    moment.name, `+${seconds(moment.at - failure.at)}`, clock(moment.at),
    aboutServer(moment),
  ]);
  return timeline({
    id: `failure-${failure.group}-${failure.attempt}-${Math.round(failure.at * 1000)}`,
    title: `${failure.group}, failure${server} in attempt ${failure.attempt}`,
    outcome: failure.outcome, at: failure.at, until: failure.until,
    rows: [{name: "group", bars: failure.bars, slowest: false}], colours: FAILURE_COLOURS,
    notes: [failure.reason, failure.diagnosis],
    more: table("What happened when", ["Moment", "After", "At", "What"], rows, [null, "number", null, "text"]),
  });
}

// One figure: title, bars over a common axis, legend, and all of it as a table.
function timeline(given) {
  const span = Math.max(given.until - given.at, 0.001);
  const tracks = [];
  for (const row of given.rows) {
    const mark = row.slowest ? " slowest" : "";
    tracks.push(make("div", {class: `row-name${mark}`}, row.slowest ? `${row.name}, slowest` : row.name));
    const track = make("div", {class: `track${mark}`});
    for (const bar of row.bars) track.append(barOf(bar, given, span));
    tracks.push(track);
  }
  tracks.push(make("div", null), axis(span));
  const table_rows = given.rows.flatMap((row) => row.bars.map((bar) => [
    row.name, bar.name, `+${seconds(bar.at - given.at)}`, seconds(bar.until - bar.at), bar.detail,
  ]));
  return make("figure", {class: "timeline", "aria-label": `${given.title}: ${given.outcome} after ${seconds(span)}`},
    make("figcaption", null,
      make("h3", null, `${given.title} `, state(OUTCOMES[given.outcome] || "off", given.outcome),
        ` after ${seconds(given.until - given.at)}`),
      make("p", {class: "dim"}, clock(given.at)),
      ...given.notes.filter(Boolean).map((note) => make("p", null, note))),
    make("div", {class: "rows", "aria-hidden": "true"}, ...tracks),
    legend(given),
    given.more || null,
    make("details", {id: given.id}, make("summary", {id: `${given.id}-summary`}, "The bars as a table"),
      table("Bars", ["Row", "Stage", "Begins", "Lasts", "Detail"], table_rows, [null, null, "number", "number", "text"])));
}

function barOf(bar, given, span) {
  const lasts = bar.until - bar.at;
  const words = `${bar.name} ${seconds(lasts)}${bar.detail ? `: ${bar.detail}` : ""}`;
  const has_room = (lasts / span) * 100 > bar.name.length * PERCENT_PER_LETTER;
  const element = make("div", {class: `bar k${colourOf(bar.name, given.colours)}`, title: words}, has_room ? bar.name : "");
  element.style.left = `${((bar.at - given.at) / span) * 100}%`;
  element.style.width = `${(lasts / span) * 100}%`;
  return element;
}

function colourOf(name, colours) {
  return Object.hasOwn(colours, name) ? colours[name] : 7;
}

function legend(given) {
  const names = [...new Set(given.rows.flatMap((row) => row.bars.map((bar) => bar.name)))];
  const entry = (name) => make("li", null, make("i", {class: `k${colourOf(name, given.colours)}`}), name);
  return make("ul", {class: "legend", "aria-hidden": "true"}, ...names.map(entry));
}

function axis(span) {
  const place = make("div", {class: "axis"});
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const tick = make("span", null, seconds(span * share));
    tick.style.left = `${share * 100}%`;
    place.append(tick);
  }
  return place;
}
