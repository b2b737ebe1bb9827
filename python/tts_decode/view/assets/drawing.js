// How things look: colours, line widths and marks, for the tree, its legend and the details.

const MARKS = {
  prompt: "prompt", kept: "kept: the search went on", pruned: "pruned", finished: "finished: an answer",
  open: "open: cut off with the search",
};
const SHADES = 24; // steps of the colour scale, so that branches of a colour are drawn together
const PLAIN = SHADES; // of a branch without a value

const COLOURS = {
  score: { label: "score", of: (node) => node.score, told: (value) => fixed(value, 3) },
  probability: { label: "mean token probability", of: (node) => node.probability, told: percent },
  entropy: { label: "mean entropy, nats", of: (node) => node.entropy, told: (value) => fixed(value, 2) },
  sharing: { label: "lines that share it", of: (node) => Math.log2(node.lines), told: (value) => grouped(Math.round(2 ** value)) },
};

class Theme {
  constructor() { this.read(); }

  read() {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(`--${name}`).trim();
    for (const name of ["panel", "ink", "soft", "line", "accent", "held"]) this[name] = value(name);
    this.heldSoft = value("held-soft");
    this.dark = matchMedia("(prefers-color-scheme: dark)").matches;
    this.shades = Array.from({ length: SHADES }, (_, i) => this.shade(i / (SHADES - 1)));
    this.shades.push(this.dark ? "#64708a" : "#a3acbd");
    this.font = getComputedStyle(document.body).fontFamily;
  }

  // Viridis without the end that the ground swallows: it grows lighter evenly, for every kind of eye.
  shade(part) {
    const [low, high] = this.dark ? [0.3, 1] : [0, 0.86];
    return d3.interpolateViridis(low + (high - low) * part);
  }
}

// Sets node.shade by a colour scale; the scale's ends.
function shadeNodes(search, name) {
  const colour = COLOURS[name];
  const values = search.nodes.map(colour.of);
  const [low, high] = d3.extent(values.filter(known));
  search.nodes.forEach((node, i) => {
    const part = high > low ? (values[i] - low) / (high - low) : 1;
    node.shade = known(values[i]) ? Math.round(part * (SHADES - 1)) : PLAIN;
  });
  return { low, high, told: colour.told };
}

const lineWidth = (tokens) => Math.min(11, 1.2 + 0.95 * Math.sqrt(tokens));

// Status by form: a square, a dot, a cross, a diamond, a ring.
function drawMark(context, status, x, y, size, colour, ground) {
  context.beginPath();
  if (status === "prompt") context.rect(x - size, y - size, 2 * size, 2 * size);
  else if (status === "finished") {
    const r = size * 1.35;
    context.moveTo(x, y - r); context.lineTo(x + r, y); context.lineTo(x, y + r); context.lineTo(x - r, y); context.closePath();
  } else if (status === "pruned") {
    context.moveTo(x - size, y - size); context.lineTo(x + size, y + size);
    context.moveTo(x - size, y + size); context.lineTo(x + size, y - size);
  } else context.arc(x, y, status === "kept" ? size * 0.72 : size, 0, 2 * Math.PI);
  context.lineWidth = status === "pruned" ? Math.max(1.6, size * 0.5) : 1.6;
  if (status === "pruned") {
    context.strokeStyle = colour;
    context.stroke();
    return;
  }
  context.fillStyle = status === "open" ? ground : colour;
  context.strokeStyle = status === "open" ? colour : ground;
  context.fill();
  context.stroke();
}

// A canvas as sharp as the screen; its context in CSS pixels.
function fitCanvas(canvas, width, height) {
  const ratio = Math.min(2, devicePixelRatio || 1);
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

function markCanvas(status, theme) {
  const canvas = make("canvas", { "aria-hidden": "true" });
  const context = fitCanvas(canvas, 18, 14);
  drawMark(context, status, 9, 7, 4, theme.ink, theme.panel);
  return canvas;
}
