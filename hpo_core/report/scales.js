/* Scales map a value to a place between `from` and `to` (pixels, or shares of an axis) and name the ticks; axes draw
   them. */

const TILT = 40; // Angle of item names that do not fit side by side, in degrees.
const TILTED_LETTERS = 14;
const FEW_WHOLE = 12; // So many whole numbers are drawn as bands, like items.

function niceStep(span, count) {
  const raw = span / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const lead = raw / power - 1e-9;
  return power * (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10);
}

function multiples(low, high, step) {
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  if (!(last - first < 1000)) return [];
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

function logTicks(low, high, count) {
  const bottom = Math.floor(Math.log10(low));
  const top = Math.ceil(Math.log10(high));
  const stride = Math.max(1, Math.ceil((top - bottom) / Math.max(count, 2)));
  const leads = top - bottom > 3 ? [1] : top - bottom > 1 ? [1, 3] : [1, 2, 5];
  const ticks = [];
  for (let power = bottom; power <= top; power += stride) {
    for (const lead of leads) ticks.push(Number(`${lead}e${power}`));
  }
  const inside = ticks.filter((tick) => tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9));
  return inside.length >= 2 ? inside : multiples(low, high, niceStep(high - low, count));
}

const ticksAt = (values, at) => values.map((value) => ({ at: at(value), text: short(value) }));

function linearScale(low, high, from, to, { count, integer = false }) {
  const step = Math.max(niceStep(high - low, count), integer ? 1 : 0);
  const at = (value) => from + ((value - low) / (high - low)) * (to - from);
  const value = (place) => low + ((place - from) / (to - from)) * (high - low);
  return { at, value, ticks: ticksAt(multiples(low, high, step), at) };
}

function logScale(low, high, from, to, { count }) {
  const span = Math.log(high / low);
  const at = (value) => from + (Math.log(value / low) / span) * (to - from);
  const value = (place) => low * Math.exp(((place - from) / (to - from)) * span);
  return { at, value, ticks: ticksAt(logTicks(low, high, count), at) };
}

function listScale(items, from, to) {
  const band = (to - from) / items.length;
  const at = (item) => from + (items.indexOf(item) + 0.5) * band;
  const longest = Math.max(...items.map((item) => item.length));
  const tilted = longest * LETTER + 8 > band;
  const ticks = items.map((item) => ({ at: at(item), text: tilted ? cut(item, TILTED_LETTERS) : item, full: item }));
  return { at, band, tilted, ticks };
}

// Extra height below the axis that tilted item names need, in pixels.
function tiltedHeight(parameter, width) {
  if (!parameter.items || !listScale(parameter.items, 0, width).tilted) return 0;
  const letters = Math.min(Math.max(...parameter.items.map((item) => item.length)), TILTED_LETTERS);
  return letters * LETTER * Math.sin((TILT * Math.PI) / 180);
}

function widened(low, high) {
  if (high > low) return [low, high];
  const by = Math.abs(low) * 0.1 || 1;
  return [low - by, high + by];
}

// A scale with round ends around values. A goal far outside of them would squash them: it is left out.
function valueScale(values, from, to, count, goal = null) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  const log = low > 0 && high / low > 100;
  const near = goal !== null && goal >= low - (high - low) && goal <= high + (high - low) && (!log || goal > low / 10);
  if (near) [low, high] = [Math.min(low, goal), Math.max(high, goal)];
  if (log) return { ...logScale(low / 1.2, high * 1.2, from, to, { count }), log, near };
  [low, high] = widened(low, high);
  const step = niceStep(high - low, count);
  const ends = [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step];
  return { ...linearScale(...ends, from, to, { count }), log, near };
}

// The scale of the objective, the same in every plot.
function objectiveScale(data, from, to, count) {
  const values = data.trials.map((trial) => trial.objective).filter((value) => value !== null);
  return valueScale(values, from, to, count, data.objective.goal);
}

const isFew = (parameter) => parameter.integer && !parameter.log && parameter.maximum - parameter.minimum < FEW_WHOLE;

function parameterScale(parameter, from, to, margin = 8, count = Math.max(2, Math.floor((to - from) / 68))) {
  if (parameter.items) return listScale(parameter.items, from, to);
  const [low, high] = widened(parameter.minimum, parameter.maximum);
  const options = { count, integer: parameter.integer };
  if (parameter.log && low > 0) return logScale(low, high, from + margin, to - margin, options);
  const band = isFew(parameter) ? (to - from) / (high - low + 1) : 0;
  const inset = band ? band / 2 : margin;
  return { ...linearScale(low, high, from + inset, to - inset, options), band };
}

// Trials of one item, or of one of a few whole numbers, are spread over its band, always the same way, so that equal
// ones do not hide each other. `most` bounds the spread.
function placeOf(trial, index, scale, most) {
  const value = trial.parameters[index];
  if (value === null) return null;
  const spread = scale.band ? (((trial.number * 0.618034) % 1) - 0.5) * Math.min(Math.abs(scale.band) * 0.6, most) : 0;
  return scale.at(value) + spread;
}

// --- Axes ---------------------------------------------------------------------------------------------------------

const widest = (scale) => Math.max(...scale.ticks.map((tick) => tick.text.length), 1) * LETTER;

function leftAxis(root, scale, left, right, title) {
  for (const tick of scale.ticks) {
    root.append(svg("line", { class: "gridline", x1: left, x2: right, y1: tick.at, y2: tick.at }));
    root.append(svg("text", { x: left - 8, y: tick.at + 4, "text-anchor": "end" }, tick.text));
  }
  axisTitle(root, scale.log ? `${title} (log scale)` : title, right, { x: 0, y: 12 });
}

function axisTitle(root, title, width, attributes) {
  const text = cut(title, Math.floor(width / (LETTER + 0.9)));
  root.append(svg("text", { class: "title", ...attributes }, text, text === title ? null : svg("title", {}, title)));
}

function tickLabel(tick, y, tilted) {
  const hint = tick.full && tick.full !== tick.text ? svg("title", {}, tick.full) : null;
  const attributes = tilted
    ? { transform: `translate(${tick.at + 4} ${y + 14}) rotate(-${TILT})`, "text-anchor": "end" }
    : { x: tick.at, y: y + 18, "text-anchor": "middle" };
  return svg("text", attributes, tick.text, hint);
}

function bottomAxis(root, scale, y, { left, right, titleAt }, title) {
  root.append(svg("line", { class: "axis", x1: left, x2: right, y1: y, y2: y }));
  let taken = -Infinity;
  for (const tick of scale.ticks) {
    const half = scale.tilted ? 3 : (tick.text.length * LETTER) / 2;
    if (tick.at - half < taken + 8) continue;
    taken = tick.at + half;
    root.append(svg("line", { class: "axis", x1: tick.at, x2: tick.at, y1: y, y2: y + 4 }));
    root.append(tickLabel(tick, y, scale.tilted));
  }
  axisTitle(root, title, right - left, { x: (left + right) / 2, y: titleAt, "text-anchor": "middle" });
}
