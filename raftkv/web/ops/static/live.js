// Keeps the page true without a reload: fetches its own <main> every second while it is looked at,
// and puts in what has changed. Works with no other script; without this one the page reloads.
"use strict";

const PERIOD_MS = 1000;
const PATIENCE_MS = 3000;
const main = document.getElementById("main");
let seen = Date.now();

function sections(root) {
  return [...root.children].filter((child) => child.id);
}

function show(html) {
  const fresh = new DOMParser().parseFromString(`<main>${html}</main>`, "text/html").body
    .firstElementChild;
  const ids = (root) => sections(root).map((section) => section.id).join();
  if (ids(fresh) !== ids(main)) {
    main.replaceChildren(...fresh.childNodes);
    return;
  }
  for (const section of sections(fresh)) {
    const old = document.getElementById(section.id);
    if (old.innerHTML === section.innerHTML && old.className === section.className) continue;
    if (old.contains(document.activeElement) && replaceQuietly(old, section)) continue;
    old.className = section.className;
    old.replaceChildren(...section.childNodes);
  }
}

// Keeps the focus on the link with the same target, and the scroll position of a wide table.
function replaceQuietly(old, section) {
  const active = document.activeElement;
  const wanted = active.getAttribute("href");
  const place = [...old.querySelectorAll("a, .scroll")].indexOf(active);
  const left = active.scrollLeft;
  old.className = section.className;
  old.replaceChildren(...section.childNodes);
  const all = [...old.querySelectorAll("a, .scroll")];
  const again = wanted === null
    ? all[place]
    : all.find((link) => link.getAttribute("href") === wanted) ?? all[place];
  again?.focus({ preventScroll: true });
  if (again) again.scrollLeft = left;
  return true;
}

function tell(text) {
  for (const place of document.querySelectorAll("[data-connection]")) {
    if (place.textContent !== text) place.textContent = text;
  }
  main.classList.toggle("stale", text !== "Live.");
}

async function turn() {
  const url = new URL(location.href);
  url.search = "?part=main";
  url.hash = "";
  try {
    const answer = await fetch(url, {
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    const type = answer.headers.get("Content-Type") ?? "";
    if (!type.startsWith("text/html")) throw new Error(`status ${answer.status}`);
    show(await answer.text());
    seen = Date.now();
    tell("Live.");
  } catch {
    const seconds = Math.round((Date.now() - seen) / 1000);
    tell(`This node has not answered for ${seconds} s: what you see is that old.`);
  }
}

async function run() {
  for (;;) {
    const began = Date.now();
    if (!document.hidden) await turn();
    const rest = Math.max(PERIOD_MS - (Date.now() - began), 100);
    await new Promise((resume) => setTimeout(resume, rest));
  }
}

// What asks before it acts is a page of its own; with a script it comes as a dialog.
document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-dialog], a[data-close]");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const open = link.closest("dialog");
  if (link.matches("[data-close]")) {
    if (open) {
      event.preventDefault();
      open.close();
    }
    return;
  }
  event.preventDefault();
  try {
    const answer = await fetch(link.href, { cache: "no-store" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const form = page.getElementById("confirm");
    if (!form) throw new Error("no form");
    form.querySelector("h1").id = "dialog-title";
    const dialog = document.createElement("dialog");
    dialog.setAttribute("aria-labelledby", "dialog-title");
    dialog.append(form);
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  } catch {
    location.assign(link.href);
  }
});

document.addEventListener("visibilitychange", () => document.hidden || turn());
run();
