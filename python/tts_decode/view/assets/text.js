// Texts and figures as they are shown. All text goes into the document through textContent or a canvas.

// What has no form of its own or changes the direction of text is shown as an escape; line breaks, tabs and
// the joiners of words and emoji stay.
const OBEYED = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;
const KEPT = new Set(["\n", "\t", "\u200c", "\u200d"]);

function visible(text) {
  return text.replace(OBEYED, (c) => KEPT.has(c) ? c : `\\u{${c.codePointAt(0).toString(16)}}`);
}

const oneLine = (text) => visible(text.replace(/\s+/g, " ").trim());
const cut = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;

// An element with attributes, and children that are elements or texts.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const grouped = new Intl.NumberFormat("en-US").format;
const fixed = (value, digits) => known(value) ? value.toFixed(digits) : "–";
const percent = (p) => !known(p) ? "–" : p >= 0.1 ? `${(100 * p).toFixed(0)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : p.toExponential(1);
const seconds = (value) => `${value.toFixed(value < 10 ? 2 : 1)} s`;
const plural = (count, word, words = `${word}s`) => `${grouped(count)} ${count === 1 ? word : words}`;

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${value.toFixed(value < 100 && unit ? 1 : 0)} ${units[unit]}`;
}

const mean = (values) => {
  const told = values.filter(known);
  return told.length ? told.reduce((sum, value) => sum + value, 0) / told.length : null;
};
