// KV held over time, and the moment that the tree is shown at.

const STEPS = 1000; // of the slider
const PLAYED = 7; // seconds that a whole search is played in
const CURVE = { left: 44, right: 14, top: 22, bottom: 18 };

class Timeline {
  // onTime is called with seconds since the search began.
  constructor(theme, onTime) {
    Object.assign(this, { theme, onTime });
    for (const id of ["curve", "slider", "moment", "play"]) this[id] = document.getElementById(id);
    this.slider.addEventListener("input", () => this.set(this.search.ended * this.slider.value / STEPS));
    this.play.addEventListener("click", () => this.toggle());
    const drag = (event) => {
      if (event.type !== "pointerdown" && !event.buttons) return;
      const box = this.curve.getBoundingClientRect();
      const part = (event.clientX - box.left - CURVE.left) / (box.width - CURVE.left - CURVE.right);
      this.stop();
      this.set(this.search.ended * Math.max(0, Math.min(1, part)));
    };
    this.curve.addEventListener("pointerdown", (event) => {
      this.curve.setPointerCapture(event.pointerId);
      drag(event);
    });
    this.curve.addEventListener("pointermove", drag);
    this.playing = null;
  }

  show(search) {
    this.stop();
    this.search = search;
    const samples = search.stats.memory;
    const unshared = samples.map((sample) => unsharedBytes(search, sample));
    this.hasPages = samples.some((sample) => sample.resident_bytes > 0);
    this.most = d3.extent([...samples.map((sample) => sample.resident_bytes), ...unshared.filter(known), 1])[1];
    this.unshared = unshared.every(known) && this.hasPages ? unshared : null;
    if (!this.hasPages) this.most = d3.extent([...samples.map((sample) => sample.logical_tokens), 1])[1];
    this.set(search.ended);
  }

  set(time) {
    this.time = time;
    this.slider.value = Math.round(STEPS * time / (this.search.ended || 1));
    const held = heldAt(this.search, time);
    const told = held ? this.told(held) : [seconds(time), "KV not sampled yet"];
    this.moment.replaceChildren(...told.map((line) => make("span", {}, line)));
    this.slider.setAttribute("aria-valuetext", told.join(", "));
    this.draw();
    this.onTime(time);
  }

  told(held) {
    const tokens = plural(held.logical_tokens, "token");
    const first = `${seconds(this.time)} · ${plural(held.branches, "branch", "branches")}`;
    if (!this.hasPages) return [first, tokens];
    const unshared = unsharedBytes(this.search, held);
    return [first, `KV held ${bytes(held.resident_bytes)}`, unshared === null ? tokens : `unshared ${bytes(unshared)}`];
  }

  draw() {
    const width = this.curve.clientWidth, height = this.curve.clientHeight;
    if (!width || !this.search) return;
    const { theme } = this, context = fitCanvas(this.curve, width, height);
    const samples = this.search.stats.memory;
    const x = d3.scaleLinear([0, this.search.ended || 1], [CURVE.left, width - CURVE.right]);
    const y = d3.scaleLinear([0, this.most], [height - CURVE.bottom, CURVE.top]);
    context.clearRect(0, 0, width, height);
    context.font = `10.5px ${theme.font}`;
    this.drawAxes(context, x, y, width, height);
    const main = (sample) => this.hasPages ? sample.resident_bytes : sample.logical_tokens;
    const seconds = (sample) => x(sample.seconds);
    context.fillStyle = theme.heldSoft;
    context.beginPath();
    d3.area(seconds, y(0), (sample) => y(main(sample))).context(context)(samples);
    context.fill();
    this.line(context, d3.line(seconds, (sample) => y(main(sample))), samples, theme.held, []);
    if (this.unshared) this.line(context, d3.line(seconds, (_, i) => y(this.unshared[i])), samples, theme.soft, [4, 3]);
    context.strokeStyle = context.fillStyle = theme.accent;
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(x(this.time), CURVE.top - 4);
    context.lineTo(x(this.time), height - CURVE.bottom);
    context.stroke();
    context.beginPath();
    context.arc(x(this.time), height - CURVE.bottom, 5, 0, 2 * Math.PI);
    context.fill();
  }

  line(context, line, samples, colour, dash) {
    Object.assign(context, { strokeStyle: colour, lineWidth: 1.8 });
    context.setLineDash(dash);
    context.beginPath();
    line.context(context)(samples);
    context.stroke();
    context.setLineDash([]);
  }

  drawAxes(context, x, y, width, height) {
    const { theme } = this;
    Object.assign(context, { fillStyle: theme.soft, strokeStyle: theme.line, lineWidth: 1, textBaseline: "middle", textAlign: "right" });
    for (const value of y.ticks(2).filter((value) => value > 0)) {
      context.beginPath();
      context.moveTo(CURVE.left, y(value));
      context.lineTo(width - CURVE.right, y(value));
      context.stroke();
    }
    context.fillText(this.hasPages ? bytes(this.most).split(" ")[0] : grouped(this.most), CURVE.left - 5, y(this.most) + 3);
    context.fillText(this.hasPages ? bytes(this.most).split(" ")[1] : "tokens", CURVE.left - 5, y(this.most) + 16);
    if (height > 80) context.fillText("0", CURVE.left - 5, y(0) - 2);
    context.textAlign = "center";
    for (const value of x.ticks(Math.max(2, width / 130))) context.fillText(`${grouped(value)} s`, Math.min(width - 14, x(value)), height - 7);
    context.textAlign = "right";
    const names = this.unshared ? "filled: KV held    dashed: each branch its own copy" : this.hasPages ? "filled: KV held" : "tokens of all branches";
    context.fillText(names, width - CURVE.right, 7);
  }

  toggle() {
    if (this.playing) this.stop();
    else this.run();
  }

  run() {
    const begin = this.time >= this.search.ended ? 0 : this.time, started = performance.now();
    const frame = (now) => {
      const time = begin + (now - started) / 1000 * this.search.ended / PLAYED;
      this.playing = time < this.search.ended ? requestAnimationFrame(frame) : null;
      this.set(Math.max(0, Math.min(time, this.search.ended)));
      if (!this.playing) this.stop();
    };
    this.playing = requestAnimationFrame(frame);
    this.label("❚❚", "Pause");
  }

  stop() {
    if (this.playing) cancelAnimationFrame(this.playing);
    this.playing = null;
    this.label("▶", "Play");
  }

  label(sign, name) {
    this.play.textContent = sign;
    this.play.setAttribute("aria-label", name);
  }
}
