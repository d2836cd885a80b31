/* Elements, texts and the tip that follows the pointer.
   All that is shown comes from the JSON block, where every decision has been made already (which trial is best, which
   axis is logarithmic). Texts enter the page as text nodes and attributes only, never as markup. */

const SVG = "http://www.w3.org/2000/svg";
const LETTER = 6.7; // Mean width of a letter at the plots' font size, in pixels.
const TIP_LINES = 16;

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

function canvas(place, height, { label, role = "img", least = 200 }) {
  const width = Math.max(place.clientWidth, least);
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role, "aria-label": label });
  return { root, width, height };
}

function short(value) {
  const size = Math.abs(value);
  const rounded = Number(value.toPrecision(5));
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return String(rounded.toExponential()).replace("e+", "e");
  return String(rounded);
}

const cut = (text, letters) => (text.length > letters ? `${text.slice(0, Math.max(letters - 1, 1))}…` : text);

// Shortened in the middle, as names often differ at their ends only.
function cutMiddle(text, letters) {
  if (text.length <= letters) return text;
  const head = Math.max(Math.ceil((letters - 1) / 2), 1);
  return `${text.slice(0, head)}…${text.slice(text.length - Math.max(letters - 1 - head, 1))}`;
}

const counted = (count) => count.toLocaleString("en");

// --- The tip ------------------------------------------------------------------------------------------------------

function facts(trial, data) {
  const value = trial.objective === null ? "no value" : short(trial.objective);
  const entries = [[data.objective.name, value]];
  data.parameters.forEach((parameter, index) => {
    const entry = trial.parameters[index];
    if (entry !== null) entries.push([parameter.name, typeof entry === "number" ? short(entry) : entry]);
  });
  return entries;
}

const tip = html("div", { class: "tip", "aria-hidden": "true" });

function showTip(trial, data, { x, y }) {
  const entries = facts(trial, data);
  const best = trial.number === data.best ? ", best" : "";
  const title = html("p", { class: `c-${trial.condition}` }, html("i", { class: "dot" }), `Trial ${trial.number}`);
  title.append(html("span", {}, ` ${data.conditions[trial.condition].toLowerCase()}${best}`));
  const lines = entries.slice(0, TIP_LINES).map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value)));
  if (entries.length > TIP_LINES) lines.push(html("div", {}, html("dt", {}, `and ${entries.length - TIP_LINES} more`)));
  tip.replaceChildren(title, html("dl", {}, ...lines));
  tip.classList.add("on");
  const { offsetWidth: width, offsetHeight: height } = tip;
  const { clientWidth, clientHeight } = document.documentElement;
  const left = x + 16 + width > clientWidth ? x - 16 - width : x + 16;
  tip.style.left = `${Math.max(left, 4)}px`;
  tip.style.top = `${Math.max(Math.min(y + 12, clientHeight - height - 4), 4)}px`;
}

const hideTip = () => tip.classList.remove("on");
