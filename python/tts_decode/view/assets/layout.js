// Where nodes lie: rows from top to bottom, and one of three horizontal axes.

const AXES = {
  depth: { label: "depth, steps", from: (node) => node.depth - 0.62, to: (node) => node.depth,
    end: (search) => furthest(search, (node) => node.depth) },
  time: { label: "time, s", from: (node) => node.began, to: (node) => node.ended, end: (search) => search.ended || 1 },
  tokens: { label: "length of the path, tokens", from: (node) => node.start, to: (node) => node.start + node.length,
    end: (search) => furthest(search, (node) => node.start + node.length) },
};

const furthest = (search, of) => search.nodes.reduce((most, node) => Math.max(most, of(node)), 1);

// Sets node.row, a leaf a row: families lie closer together than others. Returns the number of rows.
function layRows(search) {
  const above = -1;
  const root = d3.stratify()
    .id((node) => node.id)
    .parentId((node) => node.id === above ? "" : node.parent)([{ id: above }, ...search.nodes]);
  d3.cluster().nodeSize([1, 1]).separation((a, b) => a.parent === b.parent ? 1 : 1.35)(root);
  let first = Infinity, last = -Infinity;
  root.each((place) => { first = Math.min(first, place.x); last = Math.max(last, place.x); });
  root.each((place) => { if (place.data.id !== above) place.data.row = place.x - first; });
  return last - first + 1;
}

// Sets from, to and joint (where the node leaves the one above) in units of the axis.
function layColumns(search, name) {
  const axis = AXES[name];
  for (const node of search.nodes) {
    const above = search.nodes[node.parent];
    node.to = axis.to(node);
    if (!above) {
      node.from = name === "depth" ? node.to : Math.min(axis.from(node), node.to);
      node.joint = node.from;
      continue;
    }
    node.joint = above.to;
    if (node.at !== null && above.length) node.joint = above.from + (above.to - above.from) * node.at / above.length;
    node.from = Math.max(axis.from(node), name === "depth" ? node.joint : -Infinity);
  }
  return axis.end(search);
}

// What of the tree is on the canvas: x = left + column * kx, y = top + row * ky. Both directions zoom at once,
// the rows as fast as the wheel turns, the columns only until a step is wide enough to be read.
class Viewport {
  constructor() {
    Object.assign(this, { width: 1, height: 1, kx: 1, ky: 1, left: 0, top: 0, end: 1, rows: 1, depth: 1 });
  }

  x(column) { return this.left + column * this.kx; }
  y(row) { return this.top + row * this.ky; }

  measure(width, height) { Object.assign(this, { width, height }); }

  describe(end, rows, depth) { Object.assign(this, { end, rows, depth }); }

  get fitKx() { return Math.max(20, this.width - 44 - Math.min(210, this.width * 0.3)) / this.end; }
  get fitKy() { return Math.min(34, Math.max(40, this.height - 56) / Math.max(1, this.rows - 1)); }

  fit() {
    this.kx = this.fitKx;
    this.ky = this.fitKy;
    this.left = 26;
    this.top = 20 + Math.max(0, (this.height - 56 - this.ky * (this.rows - 1)) / 2);
  }

  zoom(factor, x, y) {
    const wide = Math.max(this.fitKx, 300 * this.depth / this.end);
    const kx = Math.min(wide, Math.max(this.fitKx, this.kx * Math.sqrt(factor)));
    const ky = Math.min(Math.max(38, this.fitKy), Math.max(this.fitKy, this.ky * factor));
    this.left = x - (x - this.left) * kx / this.kx;
    this.top = y - (y - this.top) * ky / this.ky;
    Object.assign(this, { kx, ky });
    this.hold();
  }

  move(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.hold();
  }

  // Keeps a part of the tree in sight.
  hold() {
    const wide = this.end * this.kx, high = (this.rows - 1) * this.ky, margin = 60;
    this.left = Math.min(this.width - margin, Math.max(margin - wide, this.left));
    this.top = Math.min(this.height - margin, Math.max(margin - high, this.top));
  }

  // Moves, and zooms if rows are too low to be told apart, until the node is in sight.
  show(node) {
    if (this.ky < 11 && this.rows > 60) this.zoom(14 / this.ky, this.x(node.to), this.y(node.row));
    const [x, y] = [this.x(node.to), this.y(node.row)];
    const inside = x > 40 && x < this.width - 120 && y > 24 && y < this.height - 44;
    if (!inside) this.move(this.width * 0.55 - x, this.height * 0.5 - y);
  }
}
