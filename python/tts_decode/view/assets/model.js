// What a saved search says of its tree, and what follows from it. Nothing here draws.

// The search with, for each node beside the fields of the file (docs/results.md):
//   children   nodes below, by id
//   depth      nodes above
//   start      tokens of the path before the node's first; `length` are its own
//   lines      paths that go on through the whole node, or end in it: at least 1
//   freed      seconds at which no branch held it any more, as far as the file tells
//   probability, entropy   means over the node's tokens: geometric (e to the mean log-probability), and nats
//   chosen     whether the chosen answer goes through it
function readSearch(result) {
  const nodes = result.tree.map((node) => ({
    ...node, children: [], depth: 0, start: 0, length: node.tokens.length, lines: 0, freed: 0, chosen: false,
    probability: exponential(mean(node.logprobs)), entropy: mean(node.entropies),
  }));
  for (const node of nodes) {
    const above = nodes[node.parent];
    if (!above) continue;
    above.children.push(node);
    node.depth = above.depth + 1;
    node.start = above.start + (node.at ?? above.length);
  }
  for (let node = nodes[result.best.node]; node; node = nodes[node.parent]) node.chosen = true;
  const ended = Math.max(result.stats.seconds, result.stats.memory.at(-1)?.seconds ?? 0);
  const search = { ...result, nodes, ended };
  countLines(nodes);
  findFreed(search);
  return search;
}

const exponential = (value) => value === null ? null : Math.exp(value);

function countLines(nodes) {
  for (let i = nodes.length - 1; i >= 0; i--) {
    nodes[i].lines = Math.max(nodes[i].lines, 1);
    if (nodes[i].parent >= 0) nodes[nodes[i].parent].lines += nodes[i].lines;
  }
}

// A node is held while a branch below it lives. A finished branch gives its pages back at its end; one that
// was pruned does so when the next decision falls, of which the file tells the next step's beginning.
function findFreed(search) {
  const begins = search.nodes.map((node) => node.began).sort((a, b) => a - b);
  const next = d3.bisector((began) => began).right;
  for (let i = search.nodes.length - 1; i >= 0; i--) {
    const node = search.nodes[i];
    let own = node.ended;
    if (node.status === "pruned") own = begins[next(begins, node.ended)] ?? search.ended;
    if (node.status === "open" || node.id === 0) own = search.ended;
    node.freed = node.children.reduce((latest, child) => Math.max(latest, child.freed), own);
  }
}

// From the prompt to the node.
function pathTo(search, node) {
  const path = [];
  for (let step = node; step; step = search.nodes[step.parent]) path.push(step);
  return path.reverse();
}

// The tokens of a node as texts, by the ends that the file has; null where it has none.
function tokenTexts(node) {
  if (node.length === 1) return [node.text];
  if (!node.ends.length) return null;
  const characters = Array.from(node.text); // ends count characters, not UTF-16 units
  return node.ends.map((end, i) => characters.slice(i ? node.ends[i - 1] : 0, end).join(""));
}

// The text of a node up to where the next one of a path leaves it.
function textUpTo(node, at) {
  if (at === null || at === undefined) return node.text;
  const texts = tokenTexts(node);
  return texts ? texts.slice(0, at).join("") : `${node.text}[cut after ${at} tokens]`;
}

// The KV pages of the path to a node: for each its tokens of that path, whether the node has tokens in it, and
// how many lines have it in common. Pages are filled by position, so two paths share those that are full where
// they part; of the page in which they part each gets a copy.
function pagesOf(search, node) {
  const size = search.stats.page_size;
  if (!size) return null;
  const path = pathTo(search, node), end = node.start + node.length, pages = [];
  for (let begin = 0, step = 0; begin < end; begin += size) {
    const last = Math.min(begin + size, end) - 1;
    while (step + 1 < path.length && path[step + 1].start <= last) step++;
    pages.push({
      index: begin / size, tokens: last + 1 - begin, own: last >= node.start,
      lines: linesOfPage(path[step], begin + size - 1),
    });
  }
  return pages;
}

// last: position of the page's last token; the node has the path's last one in that page.
function linesOfPage(node, last) {
  while (node.start + node.length <= last) {
    if (node.children.length !== 1) return 1;
    [node] = node.children;
  }
  const offset = last - node.start;
  const through = node.children.filter((child) => child.at === null || child.at > offset);
  return Math.max(1, through.reduce((sum, child) => sum + child.lines, 0));
}

// What the search held at a moment, between the samples before and after it; null before the first.
function heldAt(search, time) {
  const memory = search.stats.memory;
  if (!memory.length || time < memory[0].seconds) return null;
  const after = d3.bisector((sample) => sample.seconds).left(memory, time);
  if (after >= memory.length) return memory[memory.length - 1];
  if (after === 0) return memory[0];
  const [a, b] = [memory[after - 1], memory[after]];
  const part = b.seconds > a.seconds ? (time - a.seconds) / (b.seconds - a.seconds) : 1;
  const between = (name) => a[name] + part * (b[name] - a[name]);
  return {
    seconds: time, branches: b.branches, logical_tokens: Math.round(between("logical_tokens")),
    resident_bytes: between("resident_bytes"),
  };
}

// Bytes of the same branches if each held its own copy; null where the file does not tell the size of a page.
function unsharedBytes(search, sample) {
  const { page_size, page_bytes } = search.stats;
  return page_size && page_bytes ? sample.logical_tokens * page_bytes / page_size : null;
}

// Nodes whose text, of a prompt also its question, has the words in it, whatever their case.
function nodesWith(search, words) {
  const wanted = words.toLowerCase();
  return search.nodes.filter((node) => node.text.toLowerCase().includes(wanted));
}
