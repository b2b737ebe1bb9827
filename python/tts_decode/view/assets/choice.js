// Which search is shown: by strategy and problem, of those that the page holds.

class Choice {
  // onChoice is called with an entry of the index.
  constructor(index, onChoice) {
    Object.assign(this, { index, onChoice });
    for (const id of ["strategy", "problem", "previous", "next"]) this[id] = document.getElementById(id);
    const names = [...new Set(index.searches.map((search) => search.strategy))];
    this.strategy.append(...names.map((name) => make("option", { value: name }, visible(name))));
    this.strategy.addEventListener("change", () => this.choose(this.near(this.strategy.value, this.current.index)));
    this.problem.addEventListener("change", () => this.choose(index.searches[this.problem.value]));
    this.previous.addEventListener("click", () => this.move(-1));
    this.next.addEventListener("click", () => this.move(1));
  }

  get shown() { return this.index.searches.filter((search) => search.block !== null); }

  // The first with a tree.
  begin() { this.choose(this.shown[0]); }

  // Of a strategy the search of the same problem, or the first that there is.
  near(strategy, problem) {
    const ours = this.index.searches.filter((search) => search.strategy === strategy);
    return ours.find((search) => search.index === problem && search.block !== null)
      ?? ours.find((search) => search.block !== null) ?? ours[0];
  }

  move(by) {
    const shown = this.shown, at = shown.indexOf(this.current);
    this.choose(shown[(at + by + shown.length) % shown.length]);
  }

  choose(search) {
    this.current = search;
    this.strategy.value = search.strategy;
    this.problem.replaceChildren(...this.index.searches.flatMap((other, place) =>
      other.strategy === search.strategy ? [this.option(other, place)] : []));
    this.problem.value = this.index.searches.indexOf(search);
    const only = this.shown.length < 2;
    this.previous.disabled = this.next.disabled = only;
    this.onChoice(search);
  }

  option(search, place) {
    const sign = { true: "✓ ", false: "✗ " }[search.solved] ?? "";
    const why = search.error ? "failed" : search.block === null ? "not on this page" : cut(oneLine(search.prompt), 90);
    return make("option", { value: place }, `${search.index}  ${sign}${why}`);
  }
}

// What is said above the tree: question, answer, and what the search came to.
function aboutSearch(entry, search, settings) {
  const said = (name, text, sign) => make("div", {}, make("div", { class: "key" }, name, sign ?? null), make("div", { class: "said" }, visible(text)));
  const parts = [said("Question", search?.nodes[0].question || entry.prompt || entry.task)];
  if (!search) return [...parts, make("div", { class: "wide" }, entry.error ? `The search failed: ${visible(entry.error)}` : "Not on this page: the page is full.")];
  const verdict = { true: ["right", " ✓ right"], false: ["wrong", " ✗ wrong"] }[entry.solved];
  const sign = verdict && make("b", { class: verdict[0] }, verdict[1] + (entry.expected ? `, expected ${cut(oneLine(entry.expected), 60)}` : ""));
  parts.push(said("Answer", search.answer.trim() || "(empty)", sign));
  const { stats } = search;
  const facts = [["nodes", grouped(search.nodes.length)], ["tokens", grouped(stats.generated_tokens)], ["time", seconds(stats.seconds)],
    ["KV peak", stats.peak_bytes ? bytes(stats.peak_bytes) : "–"]];
  const told = facts.map(([name, value]) => make("div", {}, make("div", { class: "key" }, name), make("b", {}, value)));
  const run = ["model", "dtype", "options", "scorer"].filter((name) => settings[name]).map((name) => `${name}: ${visible(JSON.stringify(settings[name]).replaceAll('"', ""))}`);
  parts.push(make("div", { class: "facts", title: run.join("\n") }, ...told));
  if (search.stopped) parts.push(make("div", { class: "wide" }, `Ended early: ${visible(search.stopped)}`));
  return parts;
}
