// The page: which part is shown, which window of time, which operation; and how they are changed.

const $ = (id) => document.getElementById(id);
const AROUND = 10; // operations before and after one that is jumped to
const SHORTEST_NS = 10;

for (const part of data.parts) {
  part.operations = part.operations.map(operationOf);
  part.processes = [...new Set(part.operations.map((operation) => operation.process))].sort((a, b) => a - b);
  part.order = part.operations.filter((o) => o.place && o.moment !== null).sort((a, b) => a.place - b.place);
  part.byIndex = new Map(part.operations.map((operation) => [operation.index, operation]));
}

for (const shown of document.querySelectorAll(".scripted")) shown.hidden = false;
if (data.parts.length) start();

function start() {
  const lanes = new Lanes($("lanes"), data.faults);
  const view = { part: data.parts[0], from: 0, to: 1, selected: null, highlighted: null };
  let waiting = false;

  function redraw() {
    if (waiting) return; // several changes in a frame are drawn once
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      lanes.draw(view);
    });
  }

  function show(from, to) {
    const least = Math.max(SHORTEST_NS, to - from);
    const longest = data.length * 1.1 + SHORTEST_NS;
    const length = Math.min(least, longest);
    const low = -data.length * 0.05 - SHORTEST_NS / 2;
    view.from = Math.min(Math.max(from, low), low + longest - length);
    view.to = view.from + length;
    redraw();
  }

  // Show the operations from one place to another, by invocation, with some room beside them.
  function showOperations(first, last) {
    const some = view.part.operations.slice(Math.max(0, first), last + 1);
    if (!some.length) return show(0, data.length);
    const from = some[0].start;
    const to = Math.max(...some.map((operation) => operation.end ?? operation.start));
    const room = Math.max((to - from) * 0.06, SHORTEST_NS);
    show(from - room, to + room);
  }

  function choose(part) {
    view.part = part;
    $("part").value = String(data.parts.indexOf(part));
    const { length } = part.operations;
    $("part-note").textContent =
      `${part.verdict}; ${part.total.toLocaleString("en")} operations` +
      (length < part.total ? `, of which this page carries ${length.toLocaleString("en")}.` : ".");
    $("offending").disabled = !part.byIndex.has(part.offending);
    select(null);
    const offending = part.operations.findIndex((operation) => operation.index === part.offending);
    const centre = offending < 0 ? AROUND : offending;
    showOperations(centre - AROUND, centre + AROUND);
  }

  function select(operation) {
    view.selected = operation;
    view.highlighted = null;
    const detail = $("detail");
    detail.className = operation && operation.index === view.part.offending ? "offending" : "";
    detail.replaceChildren(operation ? listOf(factsOf(operation, view.part)) : "No operation chosen.");
    redraw();
  }

  function goTo(operation) {
    select(operation);
    const at = view.part.operations.indexOf(operation);
    if (operation.start < view.from || operation.start > view.to) showOperations(at - AROUND, at + AROUND);
    reveal(operation);
  }

  // After the next drawing: bring the operation's lane into the part of the lanes that is seen.
  function reveal(operation) {
    requestAnimationFrame(() => {
      const { container } = lanes;
      container.scrollTop = lanes.top(operation.process) - container.clientHeight / 2;
    });
  }

  function jump(part) {
    if (view.part !== part) choose(part);
    const at = part.operations.findIndex((operation) => operation.index === part.offending);
    if (at < 0) return;
    showOperations(at - AROUND, at + AROUND);
    select(part.operations[at]);
    view.highlighted = part.operations[at];
    $("lanes-section").scrollIntoView({ block: "start" });
    $("lanes").focus({ preventScroll: true });
    reveal(part.operations[at]);
  }

  function step(by) {
    const { operations } = view.part;
    const at = view.selected ? operations.indexOf(view.selected) + by : 0;
    if (operations[at]) goTo(operations[at]);
  }

  function move(share) {
    const by = (view.to - view.from) * share;
    show(view.from + by, view.to + by);
  }

  function zoom(factor, centre = (view.from + view.to) / 2) {
    show(centre - (centre - view.from) * factor, centre + (view.to - centre) * factor);
  }

  const actions = {
    earlier: () => move(-0.4),
    later: () => move(0.4),
    closer: () => zoom(0.5),
    wider: () => zoom(2),
    all: () => showOperations(0, view.part.operations.length),
    previous: () => step(-1),
    next: () => step(1),
    offending: () => jump(view.part),
  };
  const keys = {
    ArrowLeft: "earlier", ArrowRight: "later", "+": "closer", "-": "wider", 0: "all",
    p: "previous", n: "next", x: "offending",
  };
  for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
  $("lanes").addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[keys[event.key]]();
  });

  for (const [at, part] of data.parts.entries()) {
    $("part").append(new Option(`${part.name} (${part.verdict}, ${part.total})`, String(at)));
  }
  $("part").addEventListener("change", () => choose(data.parts[Number($("part").value)]));
  for (const link of document.querySelectorAll("a.jump")) {
    link.addEventListener("click", (event) => {
      const part = data.parts[Number(link.dataset.part)];
      if (!part || !part.byIndex.has(part.offending)) return; // the link leads to the table
      event.preventDefault();
      jump(part);
    });
  }
  $("timeline-chart")?.addEventListener("click", (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const { left, right } = event.currentTarget.dataset;
    const time = (((event.clientX - box.left) / box.width - left) / (right - left)) * data.length;
    const half = (view.to - view.from) / 2;
    show(time - half, time + half);
    $("lanes-section").scrollIntoView({ block: "start" });
  });

  watchPointer(lanes, view, { show, zoom, move, select });
  new ResizeObserver(redraw).observe($("lanes"));
  choose(data.parts[0]);
}

// Drag moves, Ctrl and wheel zooms, a click selects, hovering tells.
function watchPointer(lanes, view, { show, zoom, move, select }) {
  const { container } = lanes;
  const tip = $("tip");
  let drag = null;

  container.addEventListener("pointerdown", (event) => {
    if (event.button === 0) drag = { x: event.clientX, from: view.from, to: view.to, moved: false };
  });
  window.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const px = event.clientX - drag.x;
    drag.moved = drag.moved || Math.abs(px) > 4;
    if (!drag.moved) return;
    container.classList.add("dragged");
    const by = (px * (drag.to - drag.from)) / (lanes.width - lanes.gutter);
    show(drag.from - by, drag.to - by);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    window.addEventListener(end, (event) => {
      const clicked = end === "pointerup" && drag && !drag.moved;
      drag = null;
      container.classList.remove("dragged");
      const operation = clicked && operationAt(event.target);
      if (operation) select(operation);
    });
  }
  container.addEventListener("wheel", (event) => {
    const sideways = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
    if (event.ctrlKey) {
      zoom(2 ** (event.deltaY / 200), lanes.time(event.clientX - container.getBoundingClientRect().left));
    } else if (sideways) {
      move(sideways / lanes.width);
    } else {
      return; // the page scrolls
    }
    event.preventDefault();
  }, { passive: false });

  container.addEventListener("pointermove", (event) => {
    const operation = operationAt(event.target);
    const text = operation
      ? factsOf(operation, view.part).map(([name, value]) => `${name}: ${value}`).join("\n")
      : event.target.dataset?.tip;
    tip.hidden = !text || drag !== null;
    if (tip.hidden) return;
    tip.textContent = text;
    const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18;
    const fits = below + tip.offsetHeight < window.innerHeight;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${fits ? below : event.clientY - tip.offsetHeight - 10}px`;
  });
  container.addEventListener("pointerleave", () => {
    tip.hidden = true;
  });

  function operationAt(target) {
    const index = target.dataset?.index;
    return index === undefined ? null : view.part.byIndex.get(Number(index));
  }
}

function listOf(facts) {
  const list = document.createElement("dl");
  for (const [name, text] of facts) {
    const term = document.createElement("dt");
    const told = document.createElement("dd");
    term.textContent = name;
    told.textContent = text;
    list.append(term, told);
  }
  return list;
}
