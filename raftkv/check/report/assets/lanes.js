// The lanes: one part's operations as bars, a lane for each process, drawn for one window of time.
//
// Text from the history is only ever set as textContent, so that it stays text.
"use strict";

// The page's data: see raftkv/check/report/embedded.py.
const data = JSON.parse(document.getElementById("data").textContent);

const STATUS = ["ok", "fail", "info"];
const OUTCOME = ["✓ ok", "✗ failed (did not take effect)", "? unknown (may take effect at any later time, or never)"];
const LANE_PX = 38;
const BAR_PX = 20;
const AXIS_PX = 26;
const FADE_PX = 110;
const CHARACTER_PX = 6.7;
const SVG = "http://www.w3.org/2000/svg";

// The columns of a row are in the order in which raftkv/check/report/embedded.py writes them.
function operationOf(row) {
  const [index, process, f, status, start, end, value, result, revision, others, place, moment] = row;
  return { index, process, f, status, start, end, value, result, revision, others, place, moment };
}

function labelOf(operation) {
  let label = operation.f;
  if (operation.value !== "null") label += " " + operation.value;
  const answered = operation.status === 0 && operation.result !== operation.value;
  if (answered && (operation.value === "null" || operation.result !== "null")) {
    label += " → " + operation.result;
  }
  return operation.revision ? label + " @" + operation.revision : label;
}

// What is known of an operation, as [name, text] pairs.
function factsOf(operation, part) {
  const offending = operation.index === part.offending;
  const facts = [
    ["operation", "#" + operation.index + " by process " + operation.process],
    ["call", operation.f + (operation.value === "null" ? "" : " " + operation.value)],
    ["outcome", OUTCOME[operation.status]],
  ];
  if (operation.status !== 2) facts.push(["result", operation.result]);
  if (operation.revision) facts.push(["revision", operation.revision]);
  if (operation.others) facts.push(["other members", operation.others]);
  facts.push(["from", momentOf(operation.start)]);
  if (operation.end !== null) {
    const length = data.timed ? ", after " + durationOf(operation.end - operation.start) : "";
    facts.push(["to", momentOf(operation.end) + length]);
  }
  if (operation.place) facts.push(["place", String(operation.place) + " in the longest order found"]);
  else if (offending) facts.push(["place", "✗ the first that could not be placed"]);
  else facts.push(["place", "not placed"]);
  return facts;
}

// A moment of the run; of a history without times, a place in its order.
function momentOf(ns, digits = 6) {
  return data.timed ? (ns / 1e9).toFixed(digits) + " s" : String(ns);
}

function durationOf(ns) {
  const [unit, name] = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]].find(([size]) => ns >= size) || [1, "ns"];
  return Number((ns / unit).toPrecision(4)) + " " + name;
}

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Draws a view of a part into a container: {part, from, to, selected, highlighted}, times in ns.
class Lanes {
  constructor(container, faults) {
    this.container = container;
    this.faults = faults;
  }

  draw(view) {
    const { part } = view;
    this.view = view;
    this.width = Math.max(200, this.container.clientWidth);
    this.rows = new Map(part.processes.map((process, row) => [process, row]));
    const longest = Math.max(0, ...part.processes.map((process) => String(process).length));
    this.gutter = 16 + CHARACTER_PX * Math.max(4, longest + 1);
    this.height = part.processes.length * LANE_PX + 4;
    const axis = element("svg", { class: "axis", width: this.width, height: AXIS_PX });
    axis.append(...this.axis());
    const svg = element("svg", { width: this.width, height: this.height });
    svg.append(fading(), ...this.background(), ...this.bars(), ...this.order(), ...this.frame());
    this.container.replaceChildren(axis, svg);
  }

  x(time) {
    const { from, to } = this.view;
    return this.gutter + ((time - from) / (to - from)) * (this.width - this.gutter);
  }

  time(x) {
    const { from, to } = this.view;
    return from + ((x - this.gutter) / (this.width - this.gutter)) * (to - from);
  }

  top(process) {
    return this.rows.get(process) * LANE_PX;
  }

  *background() {
    for (const process of this.view.part.processes) {
      yield element("rect", { class: "lane", x: 0, y: this.top(process), width: this.width, height: LANE_PX });
    }
    for (const [start, end, colour, text] of this.faults) {
      if (end < this.view.from || start > this.view.to) continue;
      const left = Math.max(this.gutter, this.x(start));
      const right = Math.min(this.width, this.x(end));
      const width = Math.max(2, right - left);
      yield element("rect", { class: `band fault-${colour}`, x: left, y: 0, width, height: this.height, "data-tip": text });
    }
  }

  // Unknown ones first: their bars fade over those that the same process began later.
  *bars() {
    const { part, from, to } = this.view;
    const fade = (to - from) * (FADE_PX / (this.width - this.gutter));
    const visible = part.operations.filter((operation) => {
      const end = operation.end ?? Math.max(operation.start + fade, operation.moment ?? 0);
      return operation.start <= to && end >= from;
    });
    this.free = this.roomOf(visible);
    for (const operation of visible) if (operation.end === null) yield* this.unknown(operation);
    for (const operation of visible) if (operation.end !== null) yield* this.known(operation);
  }

  // Up to where a label may reach: the next bar of the same process.
  roomOf(visible) {
    const free = new Map();
    const next = new Map();
    for (const operation of [...visible].reverse()) {
      free.set(operation, next.get(operation.process) ?? this.width);
      next.set(operation.process, this.x(operation.start));
    }
    return free;
  }

  *unknown(operation) {
    const left = this.x(operation.start);
    if (operation.moment !== null && this.x(operation.moment) > left + FADE_PX) {
      const y = this.top(operation.process) + 4 + BAR_PX / 2;
      yield element("line", { class: "still-open", x1: left + FADE_PX, x2: this.x(operation.moment), y1: y, y2: y });
    }
    yield this.bar(operation, left, FADE_PX);
    yield* this.label(operation, left, FADE_PX);
  }

  *known(operation) {
    const left = Math.max(this.gutter - 4, this.x(operation.start));
    const right = Math.min(this.width + 4, this.x(operation.end));
    const width = Math.max(3, right - left);
    yield this.bar(operation, left, width);
    yield* this.label(operation, left, width);
  }

  bar(operation, x, width) {
    const { part, selected, highlighted } = this.view;
    const names = ["bar", STATUS[operation.status]];
    if (operation.index === part.offending) names.push("offending");
    if (operation === selected) names.push("selected");
    if (operation === highlighted) names.push("highlighted");
    const y = this.top(operation.process) + 4;
    return element("rect", { class: names.join(" "), x, y, width, height: BAR_PX, rx: 3, "data-index": operation.index });
  }

  // In the bar if it fits there, otherwise from the bar's end on, as far as there is room.
  *label(operation, left, width) {
    const offending = operation.index === this.view.part.offending;
    const text = (offending ? "✗ " : "") + labelOf(operation);
    const inside = Math.max(left, this.gutter) + 5;
    const free = this.free.get(operation);
    const fits = inside + text.length * CHARACTER_PX <= left + width || operation.end === null;
    const start = fits || free - left - width < left + width - inside ? inside : left + width + 4;
    const room = Math.floor(((start === inside && operation.end !== null ? left + width : free) - start - 2) / CHARACTER_PX);
    if (room < 3) return;
    const shown = text.length <= room ? text : text.slice(0, room - 1) + "…";
    yield element("text", { class: offending ? "label flag" : "label", x: start, y: this.top(operation.process) + 18 }, shown);
  }

  // The longest linearization: numbered points below the bars, and the line through them.
  *order() {
    const { from, to, part } = this.view;
    const shown = part.order.filter((operation, at) => {
      const before = part.order[at - 1] ?? operation;
      const after = part.order[at + 1] ?? operation;
      return after.moment >= from && before.moment <= to;
    });
    const points = shown.map((o) => [this.x(o.moment), this.top(o.process) + BAR_PX + 10, o.place]);
    if (!points.length) return;
    yield element("polyline", { class: "order", points: points.map(([x, y]) => `${x},${y}`).join(" ") });
    const free = new Map();
    for (const [x, y, place] of points) {
      yield element("circle", { class: "point", cx: x, cy: y, r: 3 });
      if (x < (free.get(y) ?? -Infinity)) continue;
      yield element("text", { class: "place", x: x + 5, y: y + 4 }, String(place));
      free.set(y, x + 12 + CHARACTER_PX * String(place).length);
    }
  }

  *frame() {
    yield element("rect", { class: "gutter", x: 0, y: 0, width: this.gutter, height: this.height });
    yield element("line", { class: "edge", x1: this.gutter, x2: this.gutter, y1: 0, y2: this.height });
    for (const process of this.view.part.processes) {
      yield element("text", { class: "end", x: this.gutter - 8, y: this.top(process) + 19 }, `p${process}`);
    }
  }

  *axis() {
    const wanted = Math.max(2, Math.floor((this.width - this.gutter) / 130));
    const step = Math.max(1, roundStep((this.view.to - this.view.from) / wanted));
    for (let time = Math.ceil(this.view.from / step) * step; time <= this.view.to; time += step) {
      const x = this.x(time);
      yield element("line", { class: "grid", x1: x, x2: x, y1: 18, y2: AXIS_PX });
      const digits = Math.max(0, Math.min(9, Math.ceil(9 - Math.log10(step))));
      yield element("text", { class: "middle", x: Math.min(x, this.width - 30), y: 14 }, momentOf(time, digits));
    }
  }
}

function fading() {
  const gradient = element("linearGradient", { id: "fading" });
  gradient.append(
    element("stop", { offset: "0", class: "fading-from" }),
    element("stop", { offset: "1", class: "fading-to" }),
  );
  const defs = element("defs", {});
  defs.append(gradient);
  return defs;
}

function roundStep(least) {
  const magnitude = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((by) => by * magnitude).find((step) => step >= least);
}
