// The panel that tells all of one node.

class Details {
  // onPick is called with a node that the reader chose here.
  constructor(panel, theme, onPick) { Object.assign(this, { panel, theme, onPick }); }

  show(search, node) {
    const parts = [this.heading(search, node), this.figures(search, node), this.text(node), this.entropies(node),
      this.scores(search, node), this.pages(search, node), this.path(search, node), this.moves(search, node)];
    this.panel.replaceChildren(...parts.filter((part) => part !== null));
    this.panel.scrollTop = 0;
  }

  heading(search, node) {
    const badges = [make("span", { class: "badge" }, markCanvas(node.status, this.theme), node.status)];
    if (node.id === search.best.node) badges.push(make("span", { class: "badge chosen" }, "chosen answer"));
    else if (node.chosen) badges.push(make("span", { class: "badge chosen" }, "on the way to the answer"));
    if (node.forced) badges.push(make("span", { class: "badge" }, "forced text"));
    return make("h2", {}, `Node ${node.id}`, ...badges);
  }

  figures(search, node) {
    const candidate = search.candidates.find((candidate) => candidate.node === node.id);
    const rows = [
      ["score", fixed(node.score, 3)],
      ["tokens", grouped(node.length)],
      ["depth", node.depth],
      ["time", `${node.began.toFixed(2)}–${node.ended.toFixed(2)} s`],
      ["mean probability", percent(node.probability)],
      ["mean entropy", known(node.entropy) ? `${fixed(node.entropy, 2)} nats` : "–"],
      ["path", plural(node.start + node.length, "token")],
      ["lines below", grouped(node.lines)],
      ["log-probability", node.logprobs.every(known) && node.length ? `${fixed(node.logprobs.reduce((a, b) => a + b, 0), 2)} nats` : "–"],
    ];
    if (candidate) rows.push(["as an answer", fixed(candidate.score, 3)], ["ended by", candidate.finish_reason ?? "the search's end"]);
    if (node.at !== null) rows.push(["goes on after", `token ${node.at} of node ${node.parent}`]);
    if (node.sources.length) rows.push(["made from", node.sources.map((source) => `node ${source}`).join(", ")]);
    return make("dl", { class: "figures" }, ...rows.map(([name, value]) =>
      make("div", {}, make("dt", { class: "key" }, name), make("dd", {}, visible(String(value))))));
  }

  text(node) {
    const box = make("div", { class: "text" }), told = make("p", { class: "told", "aria-live": "polite" });
    const texts = node.logprobs.length === node.length ? tokenTexts(node) : null;
    if (!texts) box.textContent = visible(node.text) || "(no text)";
    else {
      texts.forEach((text, i) => box.append(this.token(node, text, i)));
      box.addEventListener("pointerover", (event) => this.tell(node, told, event.target));
      box.addEventListener("focusin", (event) => this.tell(node, told, event.target));
    }
    this.tokens = texts ? box.children : [];
    this.told = told;
    const hint = texts ? make("span", {}, "darker: less probable") : null;
    return make("section", {}, make("h3", {}, node.status === "prompt" ? "Prompt" : "Text", hint), box, texts ? told : null);
  }

  token(node, text, i) {
    const span = make("span", { class: "token", "data-token": i }, text ? visible(text) : "∅");
    const p = known(node.logprobs[i]) ? Math.exp(node.logprobs[i]) : 1;
    span.style.backgroundColor = `rgba(var(--rare), ${(0.62 * (1 - p) ** 1.5).toFixed(3)})`;
    span.title = this.about(node, i, text);
    return span;
  }

  about(node, i, text) {
    const id = node.tokens[i] >= 0 ? `, id ${node.tokens[i]}` : "";
    const p = known(node.logprobs[i]) ? percent(Math.exp(node.logprobs[i])) : "not told";
    return `token ${node.start + i}${id}: p ${p}, log p ${fixed(node.logprobs[i], 2)}, entropy ${fixed(node.entropies[i], 2)} nats`;
  }

  tell(node, told, target) {
    const i = target.dataset?.token;
    if (i !== undefined) this.point(node, Number(i));
  }

  // Shows one token in the text, the figures and the curve.
  point(node, i) {
    this.told.textContent = this.about(node, i);
    for (const span of this.tokens) span.classList.toggle("on", Number(span.dataset.token) === i);
    this.dot?.(i);
  }

  entropies(node) {
    this.dot = null;
    if (node.entropies.filter(known).length < 2) return null;
    const high = node.entropies.filter(known).reduce((a, b) => Math.max(a, b), 0.1);
    const [svg, dot] = this.curve(node.entropies, 0, high);
    this.dot = dot;
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), part = (event.clientX - box.left) / box.width;
      this.point(node, Math.max(0, Math.min(node.length - 1, Math.round(part * (node.length - 1)))));
    });
    svg.setAttribute("aria-label", `Entropy of each token, at most ${fixed(high, 2)} nats`);
    return make("section", {}, make("h3", {}, "Entropy of each token", make("span", {}, `0 to ${fixed(high, 2)} nats`)), svg);
  }

  scores(search, node) {
    const scored = pathTo(search, node).filter((step) => known(step.score));
    if (scored.length < 2) return null;
    const [low, high] = d3.extent(scored, (step) => step.score);
    const [svg] = this.curve(scored.map((step) => step.score), low, high);
    svg.setAttribute("aria-label", `Scores along the path: ${scored.map((step) => fixed(step.score, 3)).join(", ")}`);
    return make("section", {}, make("h3", {}, "Score along the path", make("span", {}, `${fixed(low, 3)} to ${fixed(high, 3)}`)), svg);
  }

  // A small curve, and a function that puts a dot on its i-th value.
  curve(values, low, high) {
    const width = 340, height = 54;
    const x = d3.scaleLinear([0, Math.max(1, values.length - 1)], [3, width - 3]);
    const y = d3.scaleLinear([low, high > low ? high : low + 1], [height - 4, 4]);
    const svg = d3.create("svg").attr("viewBox", `0 0 ${width} ${height}`).attr("preserveAspectRatio", "none").attr("role", "img");
    const at = (value, i) => x(i), drawn = (value) => known(value);
    svg.append("path").attr("class", "under").attr("d", d3.area(at, height, y).defined(drawn)(values));
    svg.append("path").attr("class", "curve").attr("d", d3.line(at, y).defined(drawn)(values)).attr("vector-effect", "non-scaling-stroke");
    const dot = svg.append("circle").attr("class", "dot").attr("r", 0);
    return [svg.node(), (i) => known(values[i]) && dot.attr("r", 3.5).attr("cx", x(i)).attr("cy", y(values[i]))];
  }

  pages(search, node) {
    const pages = pagesOf(search, node);
    const heading = (told) => make("h3", {}, "KV pages on the path", make("span", {}, told));
    if (!pages) return make("section", {}, heading("the file does not tell the size of a page"));
    const { page_size, page_bytes } = search.stats;
    const most = Math.log2(search.nodes[0].lines + 1);
    const shared = pages.filter((page) => page.lines > 1).length;
    const cells = pages.slice(-240).map((page) => {
      const cell = make("span", { class: page.own ? "own" : null, title: `page ${page.index}: ${plural(page.tokens, "token")} of ${page_size}, ` +
        (page.lines > 1 ? `common to ${grouped(page.lines)} lines` : "of this line alone") + (page.own ? "; tokens of this node are in it" : "") }, grouped(page.lines));
      const part = Math.log2(page.lines) / Math.max(1, most);
      cell.style.backgroundColor = `color-mix(in srgb, var(--held) ${Math.round(8 + 52 * part)}%, transparent)`;
      return cell;
    });
    const left = pages.length - cells.length;
    return make("section", {}, heading(`${shared} of ${pages.length} shared, ${page_size} tokens each`),
      make("div", { class: "pages", role: "img", "aria-label": `Lines that share each page: ${pages.map((page) => page.lines).join(", ")}` },
        left ? `${left} more, then` : null, ...cells),
      make("p", { class: "told" }, `Figures: lines of the search that have the page in common. Framed: with tokens of this node. All pages: ${bytes(pages.length * page_bytes)}.`));
  }

  path(search, node) {
    const path = pathTo(search, node);
    const steps = path.map((step, i) => {
      const next = path[i + 1];
      const text = step.status === "prompt" ? `${step.question || step.text}\n` : textUpTo(step, next?.at);
      return make("button", { type: "button", class: (step === node ? "here " : "") + (step.status === "prompt" ? "asked" : ""),
        title: `Node ${step.id}`, onclick: () => this.onPick(step) }, visible(text));
    });
    return make("section", {}, make("h3", {}, "From the question to here", make("span", {}, plural(path.length, "node"))),
      make("div", { class: "text path" }, ...steps));
  }

  moves(search, node) {
    const to = (label, target) => target && make("button", { type: "button", onclick: () => this.onPick(target) }, label);
    return make("div", { class: "moves" }, to("← node above", search.nodes[node.parent]) || null,
      ...node.children.slice(0, 12).map((child) => to(`node ${child.id} →`, child)));
  }
}
