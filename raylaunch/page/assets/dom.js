// Elements and words. Texts of others become text nodes only: nothing here parses markup.

const STATE_WORDS = {
  good: ["\u2713", "good"], busy: ["\u2026", "starting"], warn: ["!", "degraded"], bad: ["\u2717", "failed"], off: ["\u2013", "off"],
};

function byId(id) {
  return document.getElementById(id);
}

// make("p", {class: "dim"}, "text", element, null)
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === "") continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

const SVG = "http://www.w3.org/2000/svg";

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, String(value));
  append(element, children);
  return element;
}

function state(name, word) {
  const [sign, usual] = STATE_WORDS[name] || ["", name];
  return make("span", {class: `state ${name}`}, make("span", {"aria-hidden": "true"}, `${sign} `), word || usual);
}

function table(caption, header, rows, kinds) {
  const kind = (index) => (kinds && kinds[index]) || null;
  const head = header.map((name, index) => make("th", {scope: "col", class: kind(index)}, name));
  const body = rows.map((cells) =>
    make("tr", null, ...cells.map((cell, index) => make("td", {class: kind(index)}, cell))));
  return make("div", {class: "scroll", role: "region", tabindex: "0", "aria-label": caption},
    make("table", null,
      make("caption", null, caption),
      make("thead", null, make("tr", null, ...head)),
      make("tbody", null, ...body)));
}

// What a section shows is built again only when its data differs; what had the focus gets it back.
const shown = new Map();

function show(section, data, build) {
  const key = JSON.stringify(data);
  if (shown.get(section) === key) return;
  shown.set(section, key);
  const place = document.querySelector(`#${section} > .content`);
  const open = new Set([...place.querySelectorAll("details[open]")].map((one) => one.id));
  const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
  place.replaceChildren(...build(data).filter(Boolean));
  for (const one of place.querySelectorAll("details")) if (open.has(one.id)) one.open = true;
  if (focused && byId(focused)) byId(focused).focus();
}

function nothing(text) {
  return [make("p", {class: "dim"}, text)];
}

function seconds(value) {
  if (value === null || value === undefined) return "-";
  const positive = Math.max(0, value);
  if (positive < 60) return `${positive.toFixed(positive < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(positive / 60);
  if (minutes < 60) return `${minutes} min ${String(Math.floor(positive % 60)).padStart(2, "0")} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function clock(at) {
  const time = new Date(at * 1000);
  const two = (number) => String(number).padStart(2, "0");
  const day = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
  const ms = String(time.getMilliseconds()).padStart(3, "0");
  return `${day} ${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}.${ms}`;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

// The text of an event, with its server if the text does not name it.
function aboutServer(event) {
  const name = `server ${event.server}`;
  return event.server === null || event.text.startsWith(name) ? event.text : `${name}: ${event.text}`;
}
