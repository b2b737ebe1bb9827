// Puts the parts together: what is chosen, shown, searched for and typed.

const byId = (id) => document.getElementById(id);
const parsed = (id) => JSON.parse(byId(id).textContent);
const index = parsed("index");
const theme = new Theme();
const state = { entry: null, search: null, axis: "depth", rows: 1, hits: [], hit: -1 };

const tree = new TreeCanvas(byId("tree"), theme, { onPick: (node) => node && pick(node), onHover: tell });
const details = new Details(byId("details"), theme, pick);
const timeline = new Timeline(theme, (time) => {
  tree.time = time;
  tree.group();
});

function show(entry) {
  state.entry = entry;
  state.search = entry.block === null ? null : readSearch(parsed(`search-${entry.block}`));
  byId("about").replaceChildren(...aboutSearch(entry, state.search, index.settings[entry.strategy] ?? {}));
  byId("plot").hidden = !state.search;
  if (!state.search) return;
  offerColours();
  state.rows = layRows(state.search);
  tree.search = state.search;
  tree.hovered = null;
  tree.selected = state.search.nodes[state.search.best.node];
  colour();
  tree.show(state.search, state.rows, state.axis);
  timeline.show(state.search);
  details.show(state.search, tree.selected);
  find();
  tree.canvas.setAttribute("aria-label", `Search tree of ${plural(state.search.nodes.length, "node")}; arrow keys move between nodes`);
}

function pick(node, { reveal = true } = {}) {
  tree.selected = node;
  if (reveal) tree.viewport.show(node);
  tree.redraw();
  const inside = details.panel.contains(document.activeElement);
  details.show(state.search, node);
  if (inside) details.panel.focus(); // what had the focus is gone
  byId("status").textContent = `Node ${node.id}, ${node.status}, score ${fixed(node.score, 3)}, ${plural(node.length, "token")}: ${cut(oneLine(node.text), 200)}`;
}

function tell(node) {
  const tip = byId("tip");
  tip.hidden = !node;
  if (!node) return;
  tip.replaceChildren(
    make("p", { class: "key" }, `node ${node.id} · ${node.status} · score ${fixed(node.score, 3)} · ${plural(node.length, "token")} · p ${percent(node.probability)}`),
    make("p", {}, cut(oneLine(node.status === "prompt" ? node.question || node.text : node.text), 220) || "(no text)"));
  const { viewport } = tree, x = viewport.x(node.to), y = viewport.y(node.row);
  const left = Math.max(4, Math.min(viewport.width - tip.offsetWidth - 4, x + 14));
  const top = y + 16 + tip.offsetHeight < viewport.height ? y + 14 : y - tip.offsetHeight - 14;
  tip.style.transform = `translate(${left}px, ${Math.max(4, top)}px)`;
}

// -- colour and axis

function offerColours() {
  const able = Object.keys(COLOURS).filter((name) => state.search.nodes.some((node) => known(COLOURS[name].of(node))));
  const before = byId("colour").value;
  byId("colour").replaceChildren(...able.map((name) => make("option", { value: name }, COLOURS[name].label)));
  byId("colour").value = able.includes(before) ? before : able[0];
}

function colour() {
  const { low, high, told } = shadeNodes(state.search, byId("colour").value);
  const canvas = byId("scale"), context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = theme.shade(x / canvas.width);
    context.fillRect(x, 0, 1, canvas.height);
  }
  byId("scale-ends").textContent = `${told(low)} – ${told(high)}`;
}

function setAxis(name) {
  state.axis = name;
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.setAttribute("aria-checked", String(button.dataset.axis === name));
    button.tabIndex = button.dataset.axis === name ? 0 : -1;
  }
  if (state.search) tree.show(state.search, state.rows, name);
}

function drawLegend() {
  const marks = Object.keys(MARKS).map((status) => make("li", {}, markCanvas(status, theme), MARKS[status]));
  byId("legend").replaceChildren(...marks, make("li", {}, "width: tokens"), make("li", {}, "outlined: way to the answer"));
}

// -- search in the text

function find() {
  const words = byId("query").value;
  state.hits = words && state.search ? nodesWith(state.search, words) : [];
  state.hit = -1;
  tree.hits = new Set(state.hits);
  byId("found").textContent = words ? plural(state.hits.length, "match", "matches") : "";
  tree.redraw();
}

function toHit(by) {
  if (!state.hits.length) return;
  const from = state.hit < 0 && by < 0 ? 0 : state.hit;
  state.hit = (from + by + state.hits.length) % state.hits.length;
  byId("found").textContent = `${state.hit + 1} of ${state.hits.length}`;
  pick(state.hits[state.hit]);
}

// -- keys

// Up and down stay at a depth; left is the node above, right the way to the answer, else the first below.
function neighbour(key) {
  const node = tree.selected, { nodes, best } = state.search;
  if (key === "ArrowLeft") return nodes[node.parent];
  if (key === "ArrowRight") return node.children.find((child) => child.chosen) ?? node.children[0];
  if (key === "Home") return nodes[0];
  if (key === "End") return nodes[best.node];
  const down = key === "ArrowDown";
  const beside = nodes.filter((other) => other.depth === node.depth && (down ? other.row > node.row : other.row < node.row));
  return beside.reduce((near, other) => !near || Math.abs(other.row - node.row) < Math.abs(near.row - node.row) ? other : near, null);
}

const KEYS = {
  "/": () => byId("query").focus(),
  n: () => toHit(1), N: () => toHit(-1),
  "+": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
  " ": () => timeline.toggle(),
  "[": () => timeline.set(Math.max(0, timeline.time - state.search.ended / 50)),
  "]": () => timeline.set(Math.min(state.search.ended, timeline.time + state.search.ended / 50)),
  d: () => setAxis("depth"), t: () => setAxis("time"), l: () => setAxis("tokens"),
  p: () => choice.move(1), P: () => choice.move(-1),
  "?": () => byId("help").showModal(),
};

function zoom(factor) {
  const { viewport, selected } = tree;
  viewport.zoom(factor, viewport.x(selected.to), viewport.y(selected.row));
  tree.redraw();
}

function fit() {
  tree.viewport.fit();
  tree.redraw();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open || !state.search) return;
  const typing = event.target.matches("input[type=search], select");
  if (typing && event.key === "Escape") tree.canvas.focus();
  if (typing || (event.target.matches("input[type=range]") && /Arrow|Home|End/.test(event.key))) return;
  if (event.target.matches("button") && event.key === " ") return;
  if (/^Arrow|^Home$|^End$/.test(event.key) && !event.target.closest("#details, .segments")) {
    const node = neighbour(event.key);
    if (node) pick(node);
    event.preventDefault();
  } else if (Object.hasOwn(KEYS, event.key)) {
    KEYS[event.key]();
    event.preventDefault();
  }
});

const HELP = [
  ["← →", "node above, node below (on the way to the answer)"], ["↑ ↓", "neighbours of the same depth"],
  ["Home End", "question, chosen answer"], ["/", "search; Enter and Shift+Enter, or n and N, go through the matches"],
  ["+ − 0", "zoom, whole tree; the wheel and two fingers zoom too"], ["space", "play; [ and ] move the time a little"],
  ["d t l", "axis: depth, time, length in tokens"], ["p P", "next, previous search of the page"],
];

byId("help").append(
  make("h2", {}, "Keys"),
  make("dl", {}, ...HELP.flatMap(([keys, what]) => [make("dt", {}, ...keys.split(" ").map((key) => make("kbd", {}, key))), make("dd", {}, what)])),
  make("h2", {}, "How to read it"),
  make("p", {}, "A line is a step: its width grows with its tokens, its colour is the scale's, its end has a mark of what became of it. The outlined way leads to the chosen answer."),
  make("p", {}, "At a moment before the end, steps to come are faint, and those that no branch holds any more are pale. The file tells when steps begin and end; a pruned branch counts as held until the next step begins."),
  make("form", { method: "dialog" }, make("button", {}, "Close")));

// -- wiring

byId("title").textContent = visible(index.title);
byId("help-open").addEventListener("click", KEYS["?"]);
byId("fit").addEventListener("click", fit);
byId("zoom-in").addEventListener("click", () => zoom(1.5));
byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
byId("query").addEventListener("input", find);
byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  toHit(1);
});
byId("query").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !event.shiftKey) return;
  event.preventDefault();
  toHit(-1);
});
byId("hit-previous").addEventListener("click", () => toHit(-1));
byId("colour").addEventListener("change", () => {
  colour();
  tree.group();
});
for (const button of document.querySelectorAll("[data-axis]")) button.addEventListener("click", () => setAxis(button.dataset.axis));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  theme.read();
  drawLegend();
  if (!state.search) return;
  colour();
  tree.redraw();
  timeline.draw();
  details.show(state.search, tree.selected);
});
new ResizeObserver(() => {
  tree.resize(byId("plot").clientWidth, byId("plot").clientHeight);
  timeline.draw();
}).observe(byId("plot"));

tree.viewport.measure(byId("plot").clientWidth, byId("plot").clientHeight);
drawLegend();
setAxis("depth");
const choice = new Choice(index, show);
choice.begin();

// For the console, and for tests: read it, the page does not.
window.treeView = {
  state, tree, timeline,
  pagesOf: (id) => pagesOf(state.search, state.search.nodes[id]),
  placeOf: (id) => [tree.viewport.x(state.search.nodes[id].to), tree.viewport.y(state.search.nodes[id].row)],
};
requestAnimationFrame(() => { document.documentElement.dataset.drawn = Math.round(performance.now()); });
