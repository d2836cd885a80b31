/* Parallel coordinates: an axis for each parameter and one for the objective, a line for each trial with a value.
   On each axis a range can be selected, with the pointer or with the two handles, which are sliders. A range is a pair
   of shares of the axis, from its lower end; `selection` keeps them. */

const AXIS_HEIGHT = 280;
const AXIS_TOP = 40;
const AXIS_GAP = 72; // Least distance of two axes in pixels; the plot scrolls where they need more than there is.
const AXIS_LETTER = 6.2;
const NAME_LETTER = 7.7;
const GRIP = 7; // A pointer this near to a range's end takes hold of it, in pixels.
const STEPS = 50; // Arrow keys move a handle by this part of an axis without bands.

// An axis knows a trial's share of it, exactly and as drawn; with bands, ranges hold whole ones only.
function parameterAxis(parameter, index) {
  const scale = parameterScale(parameter, 0, 1, 0, 5);
  const bands = scale.band ? Math.round(1 / scale.band) : 0;
  const exact = (trial) => (trial.parameters[index] === null ? null : scale.at(trial.parameters[index]));
  const drawn = (trial) => placeOf(trial, index, scale, 0.12);
  const item = (share) => scale.ticks[Math.min(Math.floor(share * bands), scale.ticks.length - 1)].full;
  const text = parameter.items ? item : (share) => short(scale.value(Math.min(Math.max(share, 0), 1)));
  return { name: parameter.name, log: parameter.log, ticks: scale.ticks, bands, exact, drawn, text };
}

function objectiveAxis(data) {
  const scale = objectiveScale(data, 0, 1, 5);
  const exact = (trial) => (trial.objective === null ? null : scale.at(trial.objective));
  const text = (share) => short(scale.value(share));
  return { name: data.objective.name, log: scale.log, ticks: scale.ticks, bands: 0, exact, drawn: exact, text };
}

function axesOf(data) {
  return [...data.parameters.map(parameterAxis), objectiveAxis(data)];
}

// The worst first, so that the best are on top.
function drawingOrder(trials, data) {
  const sign = data.objective.minimize ? 1 : -1;
  const key = (trial) => (trial.number === data.best ? -Infinity : sign * trial.objective);
  return [...trials].sort((one, other) => key(other) - key(one));
}

const heightOf = (share) => AXIS_TOP + (1 - share) * AXIS_HEIGHT;
const shareOf = (height) => Math.min(Math.max(1 - (height - AXIS_TOP) / AXIS_HEIGHT, 0), 1);

function parallelLayout(axes, width) {
  const guess = width / axes.length;
  const nameWidth = (axis) => Math.min(axis.name.length * NAME_LETTER, guess - 12) / 2 + 2;
  const letters = (axis) => Math.max(...axis.ticks.map((tick) => (tick.full ?? tick.text).length), 1);
  const tickWidth = (axis) => Math.min(letters(axis) * AXIS_LETTER, guess - 18, 200) + 16;
  const left = Math.max(nameWidth(axes[0]), tickWidth(axes[0]));
  const right = Math.max(nameWidth(axes[axes.length - 1]), tickWidth(axes[axes.length - 1]));
  const gap = (width - left - right) / (axes.length - 1);
  return { gap, x: (index) => left + index * gap };
}

function trialLine(trial, axes, layout, data) {
  const points = axes.map((axis, index) => [layout.x(index), axis.drawn(trial)]).filter(([, share]) => share !== null);
  const places = points.map(([x, share]) => [x, heightOf(share)]);
  const line = linePath(places, "polyline", trial, data);
  return { line, places, trial };
}

// A line's element; the shade tells how good the trial is.
function linePath(places, tag, trial, data) {
  const text = places.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
  const shade = trial.number === data.best ? "winner" : trial.shade === null ? `c-${trial.condition}` : `s${trial.shade}`;
  return svg(tag, { class: `line ${shade}`, points: text, "data-trial": trial.number });
}

function axisTicks(axis, x, gap, last) {
  const letters = Math.max(Math.floor(Math.min(gap - 18, 200) / AXIS_LETTER), 3);
  const side = last ? { x: x + 11, "text-anchor": "start" } : { x: x - 11, "text-anchor": "end" };
  let taken = Infinity;
  const drawn = [];
  for (const tick of axis.ticks) {
    const y = heightOf(tick.at);
    if (y > taken - 13) continue;
    taken = y;
    const text = cut(tick.full ?? tick.text, letters);
    drawn.push(svg("line", { class: "axis", x1: x - 4, x2: x + 4, y1: y, y2: y }));
    drawn.push(svg("text", { class: "halo over-lines", ...side, y: y + 4 }, text));
  }
  return drawn;
}

function axisName(axis, x, gap) {
  const text = cutMiddle(axis.name, Math.floor((gap - 12) / NAME_LETTER));
  const hint = text === axis.name ? null : svg("title", {}, axis.name);
  const title = svg("text", { class: "title", x, y: 12, "text-anchor": "middle" }, text, hint);
  const note = axis.log ? svg("text", { class: "note", x, y: 26, "text-anchor": "middle" }, "log") : null;
  return [title, note];
}

function handle(axis, end) {
  const name = `${axis.name}, ${end ? "upper" : "lower"} end of the selected range`;
  const limits = { "aria-valuemin": 0, "aria-valuemax": 100, "aria-orientation": "vertical" };
  const shape = end ? "M-7 0V-3Q-7 -7 -3 -7H3Q7 -7 7 -3V0Z" : "M-7 0V3Q-7 7 -3 7H3Q7 7 7 3V0Z";
  const grip = svg("path", { d: shape });
  return svg("g", { class: "handle", role: "slider", tabindex: 0, "aria-label": name, ...limits }, grip);
}

// Moves the handles and the band between them to the axis' range.
function showRange({ axis, x, band, handles }, range) {
  const [low, high] = range ?? [0, 1];
  handles.forEach((each, end) => {
    const share = end ? high : low;
    each.setAttribute("transform", `translate(${x} ${heightOf(share)})`);
    each.setAttribute("aria-valuenow", Math.round(share * 100));
    each.setAttribute("aria-valuetext", axis.text(end && axis.bands ? share - 0.5 / axis.bands : share + (axis.bands ? 0.5 / axis.bands : 0)));
    each.classList.toggle("set", Boolean(range));
  });
  fill(band, { y: heightOf(high), height: (high - low) * AXIS_HEIGHT, visibility: range ? "visible" : "hidden" }, []);
}

// A range from two shares in any order, of whole bands where there are bands; null for none and for the whole axis.
function rangeOf(axis, one, other) {
  let [low, high] = one < other ? [one, other] : [other, one];
  if (axis.bands) low = Math.floor(low * axis.bands + 1e-9) / axis.bands;
  if (axis.bands) high = Math.ceil(high * axis.bands - 1e-9) / axis.bands;
  return low <= 0 && high >= 1 ? null : [low, high];
}

// What a pointer at `share` does to a range: a function from the pointer's share to the next range.
function dragFrom(axis, share, range) {
  const near = GRIP / AXIS_HEIGHT;
  const start = (anchor) => (now) => rangeOf(axis, anchor, now);
  if (!range) return start(share);
  const [low, high] = range;
  if (Math.abs(share - low) < near) return start(high);
  if (Math.abs(share - high) < near) return start(low);
  if (share < low || share > high) return start(share);
  return (now) => {
    const wanted = axis.bands ? Math.round((now - share) * axis.bands) / axis.bands : now - share;
    const by = Math.min(Math.max(wanted, -low), 1 - high);
    return rangeOf(axis, low + by, high + by);
  };
}

function enableBrush(brush, root, selection) {
  const { axis, index, group } = brush;
  group.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    const top = root.getBoundingClientRect().top;
    const began = event.clientY;
    const next = dragFrom(axis, shareOf(began - top), selection.ranges.get(index));
    let moved = false;
    const move = ({ clientY }) => {
      moved ||= Math.abs(clientY - began) > 3;
      if (moved) selection.setRange(index, next(shareOf(clientY - top)));
    };
    const end = () => {
      for (const [name, listener] of listeners) removeEventListener(name, listener);
      root.classList.remove("brushing");
      if (!moved) selection.setRange(index, null);
    };
    const listeners = [["pointermove", move], ["pointerup", end], ["pointercancel", end]];
    for (const [name, listener] of listeners) addEventListener(name, listener);
    root.classList.add("brushing");
    brush.handles[0].focus({ preventScroll: true });
  });
  brush.handles.forEach((each, end) => each.addEventListener("keydown", (event) => moveHandle(event, brush, end, selection)));
}

function moveHandle(event, { axis, index }, end, selection) {
  const step = axis.bands ? 1 / axis.bands : 1 / STEPS;
  const moves = { ArrowUp: step, ArrowRight: step, ArrowDown: -step, ArrowLeft: -step, PageUp: 5 * step, PageDown: -5 * step, Home: -1, End: 1 };
  if (event.key === "Escape") selection.setRange(index, null);
  else if (event.key in moves) {
    const range = [...(selection.ranges.get(index) ?? [0, 1])];
    const room = axis.bands ? step : 0; // A range of bands holds one at least.
    const [least, most] = end ? [range[0] + room, 1] : [0, range[1] - room];
    range[end] = Math.min(Math.max(range[end] + moves[event.key], least), most);
    selection.setRange(index, range[0] <= 1e-9 && range[1] >= 1 - 1e-9 ? null : range);
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

function drawAxis(root, axis, index, { layout, selection, last }) {
  const x = layout.x(index);
  const reach = Math.min(layout.gap / 2, 20);
  const area = { x: x - reach, y: AXIS_TOP - 8, width: 2 * reach, height: AXIS_HEIGHT + 16 };
  const line = svg("line", { class: "axis strong", x1: x, x2: x, y1: AXIS_TOP, y2: AXIS_TOP + AXIS_HEIGHT });
  const band = svg("rect", { class: "range", x: x - 7, width: 14 });
  const handles = [handle(axis, 0), handle(axis, 1)];
  const group = svg("g", { class: "brush" }, svg("rect", { class: "area", ...area }), line, band, ...handles);
  root.append(...axisTicks(axis, x, layout.gap, last), ...axisName(axis, x, layout.gap).filter(Boolean), group);
  const brush = { axis, index, x, band, handles, group };
  enableBrush(brush, root, selection);
  showRange(brush, selection.ranges.get(index));
  return brush;
}

function parallelPlot(place, data, selection) {
  const { axes } = selection;
  const label = `Lines of trials over ${axes.map((axis) => axis.name).join(", ")}`;
  const least = (axes.length - 1) * AXIS_GAP + 120;
  const { root, width } = canvas(place, AXIS_TOP + AXIS_HEIGHT + 14, { label, role: "group", least });
  const layout = parallelLayout(axes, width);
  const valued = data.trials.filter((trial) => trial.objective !== null);
  const lines = drawingOrder(valued, data).map((trial) => trialLine(trial, axes, layout, data));
  root.classList.add(density(lines.length));
  root.append(svg("g", {}, ...lines.map(({ line }) => line)), svg("polyline", { class: "over" }));
  const brushes = axes.map((axis, index) => drawAxis(root, axis, index, { layout, selection, last: index === axes.length - 1 }));
  selection.showRanges = () => brushes.forEach((brush) => showRange(brush, selection.ranges.get(brush.index)));
  hoverLines(root, lines, data);
  return root;
}

const density = (count) => (count > 300 ? "dense" : count > 40 ? "medium" : "sparse");
