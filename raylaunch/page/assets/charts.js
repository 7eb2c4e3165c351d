// Benchmarks as curves, side by side.

const WIDTH = 360, HEIGHT = 220, LEFT = 50, BOTTOM = 40, TOP = 12, RIGHT = 14;

function showBenchmarks(facts) {
  show("benchmarks", facts.figures, (figures) => {
    if (!figures.length) return nothing("no benchmark is kept on this machine");
    return figures.flatMap((figure) => [
      make("h3", null, figure.title),
      figure.source ? make("p", {class: "dim"}, `reference: ${figure.source}`) : null,
      make("div", {class: "charts"}, ...figure.panels.map((panel) => panelFigure(figure, panel))),
      panelTable(figure),
    ].filter(Boolean));
  });
}

function panelFigure(figure, panel) {
  const points = [...panel.newest, ...panel.earlier, ...(panel.reference ? [panel.reference] : [])];
  const top = Math.max(...points.map((point) => point[1]), 0) * 1.15 || 1;
  const xs = figure.ticks.map((tick) => tick[0]);
  const low = Math.min(...xs), high = Math.max(...xs);
  const x = (value) => LEFT + (high > low ? (value - low) / (high - low) : 0.5) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const svg = draw("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true"});
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const level = y(top * share);
    svg.append(draw("line", {class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: level, y2: level}),
      draw("text", {x: LEFT - 5, y: level + 4, "text-anchor": "end"}, short(top * share)));
  }
  for (const [at, name] of figure.ticks) {
    svg.append(draw("text", {x: x(at), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle"}, name.replace("\n", " ")));
  }
  svg.append(draw("text", {x: (LEFT + WIDTH) / 2, y: HEIGHT - 6, "text-anchor": "middle"}, figure.axis));
  drawPoints(svg, figure, panel, x, y);
  return make("figure", null, make("figcaption", null, panel.title), svg);
}

function drawPoints(svg, figure, panel, x, y) {
  const dot = (name, point) => draw("circle", {class: name, cx: x(point[0]), cy: y(point[1]), r: 3.5});
  for (const point of panel.earlier) svg.append(dot("earlier", point));
  const path = panel.newest.map((point) => `${x(point[0])},${y(point[1])}`).join(" ");
  svg.append(draw("polyline", {class: "newest", points: path}));
  for (const point of panel.newest) svg.append(dot("dot", point));
  if (!panel.reference) return;
  if (figure.axis === "concurrency") {
    svg.append(dot("reference", panel.reference));
    return;
  }
  const level = y(panel.reference[1]);
  svg.append(draw("line", {class: "reference-line", x1: LEFT, x2: WIDTH - RIGHT, y1: level, y2: level}));
}

function panelTable(figure) {
  const header = [figure.axis, ...figure.panels.map((panel) => panel.title)];
  const rows = figure.ticks.map(([at, name]) => [name.replace("\n", " "), ...figure.panels.map((panel) => {
    const found = panel.newest.find((point) => point[0] === at);
    return found ? short(found[1]) : "-";
  })]);
  return table(figure.title, header, rows, [null, ...figure.panels.map(() => "number")]);
}

function short(value) {
  if (value >= 10000) return `${(value / 1000).toFixed(0)}k`;
  return value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
}
