// The tree on its canvas: drawing, zooming, and which node lies under the pointer.

const FULL = 0, PRUNED = 1, FREED = 2, UNBORN = 3;
const OPACITY = [1, 0.62, 0.3, 0.1];
const FAR = 3; // rows lower than this, in pixels, are drawn as bare lines

// What of the canvas is taken, in bands 4 pixels high.
class Bands {
  constructor() { this.bands = new Map(); }

  *of(y, half) {
    for (let band = Math.floor((y - half) / 4); band <= Math.floor((y + half) / 4); band++) yield band;
  }

  take(y, from, to, half) {
    for (const band of this.of(y, half)) {
      if (!this.bands.has(band)) this.bands.set(band, []);
      this.bands.get(band).push([from, to]);
    }
  }

  // How much is free to the right of a place.
  room(y, from, end, half) {
    let free = end;
    for (const band of this.of(y, half)) {
      for (const [a, b] of this.bands.get(band) ?? []) if (b > from && a < free) free = Math.max(from, a - 6);
    }
    return free - from;
  }
}

class TreeCanvas {
  // onPick and onHover are called with a node, or null.
  constructor(canvas, theme, { onPick, onHover }) {
    Object.assign(this, { canvas, theme, onPick, onHover });
    this.viewport = new Viewport();
    this.axis = "depth";
    this.hits = new Set();
    this.search = this.selected = this.hovered = null;
    this.time = Infinity;
    this.waiting = false;
    this.frames = 0;
    this.listen();
  }

  show(search, rows, axis) {
    Object.assign(this, { search, axis });
    this.viewport.describe(layColumns(search, axis), rows, furthest(search, (node) => node.depth));
    this.viewport.fit();
    this.group();
  }

  // Branches of one look are drawn together: one stroke for some hundreds of them.
  group() {
    const looks = new Map();
    const whole = this.time >= this.search.ended;
    for (const node of this.search.nodes) {
      node.look = FULL;
      if (!whole && node.began > this.time) node.look = UNBORN;
      else if (!whole && node.freed <= this.time) node.look = FREED;
      else if (node.status === "pruned" && whole) node.look = PRUNED;
      const width = Math.round(lineWidth(node.length)), key = (node.look * 16 + width) * 32 + node.shade;
      if (!looks.has(key)) looks.set(key, { look: node.look, width, shade: node.shade, nodes: [] });
      looks.get(key).nodes.push(node);
    }
    this.looks = [...looks.values()].sort((a, b) => b.look - a.look);
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  resize(width, height) {
    const fitted = this.viewport.kx === this.viewport.fitKx && this.viewport.ky === this.viewport.fitKy;
    this.viewport.measure(width, height);
    if (this.search && fitted) this.viewport.fit();
    this.redraw();
  }

  draw() {
    if (!this.search) return;
    const { viewport, theme } = this;
    const context = fitCanvas(this.canvas, viewport.width, viewport.height);
    context.clearRect(0, 0, viewport.width, viewport.height);
    context.lineJoin = context.lineCap = "round";
    this.drawAxis(context);
    const seen = (node) => this.isSeen(node);
    if (this.selected) {
      const path = pathTo(this.search, this.selected);
      this.stroke(context, path, (node) => this.widthOf(lineWidth(node.length)) + 7, theme.accent, 0.35);
    }
    const chosen = this.search.nodes.filter((node) => node.chosen && node.began <= this.time);
    this.stroke(context, chosen, (node) => this.widthOf(lineWidth(node.length)) + 4, theme.ink, 1);
    for (const { look, width, shade, nodes } of this.looks) {
      context.globalAlpha = OPACITY[look];
      context.strokeStyle = theme.shades[shade];
      context.lineWidth = this.widthOf(width);
      context.beginPath();
      for (const node of nodes) if (seen(node)) this.trace(context, node);
      context.stroke();
    }
    context.globalAlpha = 1;
    this.drawMarks(context, this.search.nodes.filter(seen));
    if (viewport.ky >= FAR) this.drawTexts(context, this.search.nodes.filter(seen));
    this.drawRings(context);
    this.frames++;
  }

  widthOf(width) { return Math.max(0.7, Math.min(width, this.viewport.ky * 0.72)); }

  isSeen(node) {
    const { viewport } = this, above = this.search.nodes[node.parent];
    const y = viewport.y(node.row), from = above ? viewport.y(above.row) : y;
    return Math.max(y, from) >= -12 && Math.min(y, from) <= viewport.height + 12
      && viewport.x(node.to) >= -260 && viewport.x(node.joint) <= viewport.width + 12;
  }

  stroke(context, nodes, width, colour, opacity) {
    Object.assign(context, { strokeStyle: colour, globalAlpha: opacity });
    for (const node of nodes) {
      context.lineWidth = width(node);
      context.beginPath();
      this.trace(context, node);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  // A curve from the node above to the beginning, then a line as long as the node is; as far as the moment.
  trace(context, node) {
    const { viewport } = this, above = this.search.nodes[node.parent], y = viewport.y(node.row);
    const from = viewport.x(node.from);
    let to = viewport.x(node.to);
    if (node.look !== UNBORN && this.time < node.ended) to = from + (to - from) * (this.time - node.began) / (node.ended - node.began);
    if (!above) {
      context.moveTo(from, y);
      context.lineTo(Math.max(to, from + 0.1), y);
      return;
    }
    const joint = viewport.x(node.joint), up = viewport.y(above.row), half = (from - joint) / 2;
    context.moveTo(joint, up);
    if (half < 3 || viewport.ky < FAR) context.lineTo(from, y);
    else context.bezierCurveTo(joint + half, up, from - half, y, from, y);
    context.lineTo(to, y);
  }

  drawMarks(context, nodes) {
    const { viewport, theme } = this;
    if (viewport.ky < FAR) {
      context.fillStyle = theme.ink;
      for (const node of nodes) {
        if (node.status === "finished" && node.look < FREED) context.fillRect(viewport.x(node.to) - 1, viewport.y(node.row) - 1, 2, 2);
      }
    } else {
      const size = viewport.ky < 9 ? 2.4 : 4;
      for (const node of nodes) {
        if (this.time < node.ended) continue; // it still grows
        context.globalAlpha = Math.max(0.35, OPACITY[node.look]);
        const large = node.id === this.search.best.node ? 1.5 : 1;
        const colour = node.status === "kept" || node.status === "open" ? theme.shades[node.shade] : theme.ink;
        drawMark(context, node.status, viewport.x(node.to), viewport.y(node.row), size * large, colour, theme.panel);
      }
      context.globalAlpha = 1;
    }
    const best = this.search.nodes[this.search.best.node];
    if (this.time >= best.ended) drawMark(context, best.status, viewport.x(best.to), viewport.y(best.row), 6, theme.ink, theme.panel);
  }

  // Texts above lines that have the room, and behind leaves as far as nothing else lies there; those of answers
  // take their room first.
  drawTexts(context, nodes) {
    const { viewport, theme } = this, taken = new Bands();
    context.font = `11px ${theme.font}`;
    context.textBaseline = "middle";
    context.fillStyle = theme.ink;
    const begun = nodes.filter((node) => node.ended <= this.time && node.status !== "prompt");
    for (const node of begun) taken.take(viewport.y(node.row), viewport.x(node.from), viewport.x(node.to) + 8, 2);
    const first = (node) => node.id === this.search.best.node ? 0 : node.status === "finished" ? 1 : 2;
    for (const node of begun.sort((a, b) => first(a) - first(b))) {
      const x = viewport.x(node.to), y = viewport.y(node.row), long = x - viewport.x(node.from);
      const above = viewport.ky >= 20 && long > 60;
      if (!above && node.children.length) continue;
      const room = above ? long : taken.room(y, x + 9, viewport.width - 6, 5);
      const letters = Math.floor(room / 6);
      if (letters < 5) continue;
      context.globalAlpha = node.look === FULL ? 0.95 : 0.55;
      node.line ??= oneLine(node.text.slice(0, 200));
      const text = cut(node.line, letters);
      if (above) context.fillText(text, x - long + 2, y - this.widthOf(lineWidth(node.length)) / 2 - 7);
      else {
        context.fillText(text, x + 11, y);
        taken.take(y, x + 9, x + 15 + 6 * text.length, 5);
      }
    }
    context.globalAlpha = 1;
  }

  drawRings(context) {
    const { viewport, theme } = this;
    const ring = (node, radius, width, dash) => {
      context.setLineDash(dash);
      context.lineWidth = width;
      context.beginPath();
      context.arc(viewport.x(node.to), viewport.y(node.row), radius, 0, 2 * Math.PI);
      context.stroke();
    };
    context.strokeStyle = theme.accent;
    for (const node of this.hits) if (this.isSeen(node)) ring(node, 7, 1.6, [3, 2]);
    if (this.hovered) ring(this.hovered, 8, 1.4, []);
    if (this.selected) ring(this.selected, 9, 2.6, []);
    context.setLineDash([]);
  }

  drawAxis(context) {
    const { viewport, theme } = this, bottom = viewport.height - 20;
    const scale = d3.scaleLinear().domain([-viewport.left / viewport.kx, (viewport.width - viewport.left) / viewport.kx]).range([0, viewport.width]);
    context.font = `11px ${theme.font}`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.strokeStyle = theme.line;
    context.fillStyle = theme.soft;
    context.lineWidth = 1;
    const right = viewport.width - context.measureText(AXES[this.axis].label).width - 20;
    for (const tick of scale.ticks(Math.max(2, viewport.width / 110))) {
      const x = Math.round(scale(tick)) + 0.5;
      if (tick < 0 || tick > viewport.end * 1.02 || x > right || (this.axis === "depth" && tick % 1)) continue;
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, bottom - 2);
      context.stroke();
      context.fillText(grouped(tick), x, bottom + 9);
    }
    if (this.axis === "time" && this.time < this.search.ended) {
      context.strokeStyle = theme.accent;
      context.beginPath();
      context.moveTo(scale(this.time), 0);
      context.lineTo(scale(this.time), bottom);
      context.stroke();
    }
    context.textAlign = "right";
    context.fillText(AXES[this.axis].label, viewport.width - 8, bottom + 9);
    context.textAlign = "left";
  }

  // The node whose line or mark is nearest to a place of the canvas, at most 9 pixels away.
  nodeAt(x, y) {
    let best = null, least = 9;
    for (const node of this.search.nodes) {
      const dy = Math.abs(this.viewport.y(node.row) - y);
      if (dy > least) continue;
      const from = this.viewport.x(node.from), to = this.viewport.x(node.to);
      const dx = x < from ? from - x : x > to ? x - to : Math.abs(to - x) < 6 ? -2 : 0; // marks win over lines
      const distance = Math.hypot(dy, Math.max(0, dx - 4)) + Math.min(0, dx);
      if (distance < least) [best, least] = [node, distance];
    }
    return best;
  }

  listen() {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let before = { k: 1, x: 0, y: 0 };
    const zoomed = ({ transform, sourceEvent }) => {
      // d3 tells where its own picture would be; what changed since then goes to the viewport.
      const factor = transform.k / before.k;
      const [x, y] = sourceEvent && factor !== 1 ? this.middleOf(sourceEvent, place) : [0, 0];
      const dx = transform.x - (before.x * factor + x * (1 - factor));
      const dy = transform.y - (before.y * factor + y * (1 - factor));
      before = transform;
      if (factor !== 1) this.viewport.zoom(factor, x, y);
      this.viewport.move(dx, dy);
      this.redraw();
    };
    const zoom = d3.zoom().filter((event) => !event.button).on("zoom", zoomed)
      .on("start", () => { this.canvas.style.cursor = "grabbing"; })
      .on("end", () => { this.canvas.style.cursor = ""; });
    d3.select(this.canvas).call(zoom).on("dblclick.zoom", null);
    this.canvas.addEventListener("click", (event) => this.onPick(this.nodeAt(...place(event))));
    this.canvas.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "touch" && !event.buttons) this.hover(this.nodeAt(...place(event)));
    });
    this.canvas.addEventListener("pointerleave", () => this.hover(null));
  }

  // Of one pointer its place, of two touches the middle between them.
  middleOf(event, place) {
    const points = event.touches?.length ? [...event.touches].map(place) : [place(event)];
    return [0, 1].map((i) => points.reduce((sum, point) => sum + point[i], 0) / points.length);
  }

  hover(node) {
    if (node === this.hovered) return;
    this.hovered = node;
    this.canvas.style.cursor = node ? "pointer" : "";
    this.onHover(node);
    this.redraw();
  }
}
