"use strict";
/* Draws the plots of a tuning report and makes its table sortable.
   All that is shown comes from the JSON block, where every decision has been made already (which trial is best, which
   axis is logarithmic). Texts enter the page as text nodes and attributes only, never as markup.
   A plot is a function of (place, data) that returns one element; PLOTS names it, `data-plot` puts it on the page. */
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const LETTER = 6.7; // Mean width of a letter at the plots' font size, in pixels.
  const TILT = 40; // Angle of item names that do not fit side by side, in degrees.
  const TILTED_LETTERS = 14;

  // --- Elements -------------------------------------------------------------------------------------------------

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

  function canvas(place, height, label) {
    const width = Math.max(place.clientWidth, 200);
    const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    return { root, width, height };
  }

  // --- Numbers --------------------------------------------------------------------------------------------------

  function short(value) {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e6)) return String(Number(value.toPrecision(5)).toExponential()).replace("e+", "e");
    return String(Number(value.toPrecision(5)));
  }

  const cut = (text, letters) => (text.length > letters ? `${text.slice(0, Math.max(letters - 1, 1))}…` : text);

  function niceStep(span, count) {
    const raw = span / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(raw));
    const lead = raw / power;
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

  // --- Scales: value -> pixel, with ticks -----------------------------------------------------------------------

  function linearScale(low, high, from, to, { count, integer = false }) {
    const step = Math.max(niceStep(high - low, count), integer ? 1 : 0);
    const at = (value) => from + ((value - low) / (high - low)) * (to - from);
    return { at, ticks: multiples(low, high, step).map((value) => ({ at: at(value), text: short(value) })) };
  }

  function logScale(low, high, from, to, { count }) {
    const span = Math.log(high / low);
    const at = (value) => from + (Math.log(value / low) / span) * (to - from);
    return { at, ticks: logTicks(low, high, count).map((value) => ({ at: at(value), text: short(value) })) };
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

  // The scale of the objective, the same in every plot. A goal far outside of the values would squash them: left out.
  function objectiveScale(data, from, to, count) {
    const values = data.trials.map((trial) => trial.objective).filter((value) => value !== null);
    let low = Math.min(...values);
    let high = Math.max(...values);
    const goal = data.objective.goal;
    const log = low > 0 && high / low > 100;
    const near = goal !== null && goal >= low - (high - low) && goal <= high + (high - low) && (!log || goal > low / 10);
    if (near) [low, high] = [Math.min(low, goal), Math.max(high, goal)];
    if (log) return { ...logScale(low / 1.2, high * 1.2, from, to, { count }), log, near };
    [low, high] = widened(low, high);
    const step = niceStep(high - low, count);
    const ends = [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step];
    return { ...linearScale(...ends, from, to, { count }), log, near };
  }

  function parameterScale(parameter, from, to) {
    if (parameter.items) return listScale(parameter.items, from, to);
    const [low, high] = widened(parameter.minimum, parameter.maximum);
    const options = { count: Math.max(2, Math.floor((to - from) / 75)), integer: parameter.integer };
    if (parameter.log && low > 0) return logScale(low, high, from + 8, to - 8, options);
    const few = parameter.integer && high - low <= 12;
    const band = few ? (to - from) / (high - low + 1) : 0;
    const margin = few ? band / 2 : 8;
    return { ...linearScale(low, high, from + margin, to - margin, options), band };
  }

  // --- Parts of a plot ------------------------------------------------------------------------------------------

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

  function describe(trial, data) {
    const value = trial.objective === null ? "no value" : short(trial.objective);
    const lines = [`Trial ${trial.number}: ${data.conditions[trial.condition]}`, `${data.objective.name}: ${value}`];
    data.parameters.forEach((parameter, index) => {
      const entry = trial.parameters[index];
      if (entry !== null) lines.push(`${parameter.name}: ${typeof entry === "number" ? short(entry) : entry}`);
    });
    return svg("title", {}, lines.join("\n"));
  }

  // Conditions differ in shape too, for those who cannot tell the colours apart.
  function shape(condition, x, y, size) {
    if (condition === "EarlyStopped") {
      const reach = size * 1.25;
      return svg("path", { d: `M${x} ${y - reach}L${x + reach} ${y}L${x} ${y + reach}L${x - reach} ${y}Z` });
    }
    if (condition === "Succeeded") return svg("circle", { cx: x, cy: y, r: size });
    return svg("rect", { x: x - size, y: y - size, width: 2 * size, height: 2 * size });
  }

  function point(trial, data, x, y, size) {
    const best = trial.number === data.best;
    const mark = shape(trial.condition, x, y, best ? size + 1 : size);
    mark.setAttribute("class", `mark c-${trial.condition}${best ? " winner" : ""}`);
    mark.dataset.trial = trial.number;
    mark.append(describe(trial, data));
    if (!best) return mark;
    return svg("g", {}, mark, svg("circle", { class: "ring", cx: x, cy: y, r: size + 5 }));
  }

  function rug(trial, data, x, y) {
    const attributes = { class: `tick c-${trial.condition}`, "data-trial": trial.number, x1: x, x2: x, y1: y - 12, y2: y - 3 };
    return svg("line", attributes, describe(trial, data));
  }

  // Trials with a value as points, the best one last and so on top; the others as ticks at the bottom.
  function drawTrials(root, data, place, y, bottom) {
    const size = data.trials.length > 200 ? 2.5 : data.trials.length > 60 ? 3.5 : 4.5;
    const order = [...data.trials].sort((one, other) => (one.number === data.best) - (other.number === data.best));
    for (const trial of order) {
      const x = place(trial);
      if (x === null) continue;
      root.append(trial.objective === null ? rug(trial, data, x, bottom) : point(trial, data, x, y.at(trial.objective), size));
    }
  }

  function drawGoal(root, data, y, left, right) {
    const goal = data.objective.goal;
    if (goal === null) return;
    if (y.near) {
      const line = y.at(goal);
      root.append(svg("line", { class: "goal", x1: left, x2: right, y1: line, y2: line }));
      root.append(svg("text", { class: "halo", x: left + 6, y: line - 6 }, `goal ${short(goal)}`));
      return;
    }
    root.append(svg("text", { x: right, y: 12, "text-anchor": "end" }, `goal ${short(goal)} is outside of this range`));
  }

  function drawCourse(root, data, x, y) {
    let path = "";
    data.trials.forEach((trial, index) => {
      const value = data.bestSoFar[index];
      if (value === null) return;
      path += path ? `H${x.at(trial.number)}V${y.at(value)}` : `M${x.at(trial.number)} ${y.at(value)}`;
    });
    root.append(svg("path", { class: "course", d: path }));
  }

  function labelBest(root, data, x, y, { left, right, bottom }) {
    const best = data.trials.find((trial) => trial.number === data.best);
    const text = `best ${short(best.objective)}`;
    const half = (text.length * LETTER) / 2;
    const middle = Math.min(Math.max(x.at(best.number), left + half), right - half);
    const height = y.at(best.objective);
    // On the side where no better trial can be, unless that is where the ticks are.
    const below = data.objective.minimize && height + 32 < bottom;
    const attributes = { class: "halo strong", x: middle, y: height + (below ? 25 : -16), "text-anchor": "middle" };
    root.append(svg("text", attributes, text));
  }

  // --- Plots ----------------------------------------------------------------------------------------------------

  function legend(place, data) {
    const present = Object.keys(data.conditions).filter((name) => data.trials.some((trial) => trial.condition === name));
    const entry = (symbol, text) =>
      html("li", {}, svg("svg", { width: 16, height: 14, "aria-hidden": "true" }, symbol), text);
    const entries = present.map((name) => {
      const valued = data.trials.some((trial) => trial.condition === name && trial.objective !== null);
      const mark = valued ? shape(name, 8, 7, 4.5) : svg("line", { x1: 8, x2: 8, y1: 2.5, y2: 11.5 });
      mark.setAttribute("class", `${valued ? "mark" : "tick"} c-${name}`);
      return entry(mark, data.conditions[name] + (valued ? "" : " (no value)"));
    });
    const course = svg("path", { class: "course", d: "M0 10H8V4H16" });
    return html("ul", { class: "legend" }, ...entries, entry(course, "best so far"));
  }

  function objectivePlot(place, data) {
    const { root, width, height } = canvas(place, 330, `${data.objective.name} of each trial, and the best so far`);
    const bottom = height - 46;
    const missing = data.trials.some((trial) => trial.objective === null);
    const y = objectiveScale(data, bottom - (missing ? 22 : 14), 38, 6);
    const left = widest(y) + 10;
    const last = data.trials[data.trials.length - 1].number;
    const count = Math.floor((width - left) / 60);
    const x = linearScale(...widened(Math.min(1, last), last), left + 12, width - 12, { count, integer: true });
    leftAxis(root, y, left, width, data.objective.name);
    bottomAxis(root, x, bottom, { left, right: width, titleAt: bottom + 39 }, "trial");
    drawGoal(root, data, y, left, width);
    drawCourse(root, data, x, y);
    drawTrials(root, data, (trial) => x.at(trial.number), y, bottom);
    if (data.best !== null) labelBest(root, data, x, y, { left, right: width, bottom: bottom - (missing ? 14 : 0) });
    return root;
  }

  function parameterPlot(place, data) {
    const index = Number(place.dataset.index);
    const parameter = data.parameters[index];
    const extra = tiltedHeight(parameter, place.clientWidth - 60);
    const { root, width, height } = canvas(place, 230 + extra, `${data.objective.name} against ${parameter.name}`);
    const bottom = height - extra - 44;
    const missing = data.trials.some((trial) => trial.objective === null);
    const y = objectiveScale(data, bottom - (missing ? 20 : 14), 34, 4);
    const left = widest(y) + 10;
    const x = parameterScale(parameter, left, width);
    leftAxis(root, y, left, width, data.objective.name);
    const title = parameter.log ? `${parameter.name} (log scale)` : parameter.name;
    bottomAxis(root, x, bottom, { left, right: width, titleAt: height - 5 }, title);
    drawTrials(root, data, (trial) => parameterPlace(trial, index, x), y, bottom);
    return root;
  }

  // Trials of one item, or of one of a few whole numbers, are spread over its band, always the same way, so that equal ones do not hide each other.
  function parameterPlace(trial, index, x) {
    const value = trial.parameters[index];
    if (value === null) return null;
    const spread = x.band ? (((trial.number * 0.618034) % 1) - 0.5) * Math.min(x.band * 0.6, 60) : 0;
    return x.at(value) + spread;
  }

  const PLOTS = { legend, objective: objectivePlot, parameter: parameterPlot };

  function draw(data) {
    for (const place of document.querySelectorAll("[data-plot]")) {
      place.replaceChildren(PLOTS[place.dataset.plot](place, data));
    }
  }

  function redrawOnResize(data) {
    const main = document.querySelector("main");
    let drawn = main.clientWidth;
    new ResizeObserver(() => {
      if (main.clientWidth === drawn) return;
      drawn = main.clientWidth;
      draw(data);
    }).observe(main);
  }

  // --- Table and links between plots and table ------------------------------------------------------------------

  function sortKey(row, column, numeric) {
    const cell = row.cells[column];
    const text = cell.dataset.v ?? cell.textContent;
    if (!numeric) return text === "" ? null : text;
    const value = text === "" ? NaN : Number(text);
    return Number.isNaN(value) ? null : value;
  }

  function compare(one, other) {
    return typeof one === "number" ? one - other : one.localeCompare(other, "en", { numeric: true });
  }

  // Rows without a value stay last, whichever the direction.
  function sortRows(table, heading) {
    const numeric = heading.classList.contains("n");
    const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => ({ row, key: sortKey(row, heading.cellIndex, numeric) }));
    keyed.sort((one, other) => {
      if (one.key === null || other.key === null) return (one.key === null) - (other.key === null);
      return direction * compare(one.key, other.key);
    });
    body.append(...keyed.map(({ row }) => row));
    for (const each of heading.parentElement.cells) each.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
  }

  function enableSorting(table) {
    for (const heading of table.querySelectorAll("th[aria-sort]")) {
      const button = html("button", { type: "button" }, ...heading.childNodes);
      button.addEventListener("click", () => sortRows(table, heading));
      heading.replaceChildren(button);
    }
  }

  function linkTrials() {
    const mark = (event, on) => {
      const trial = event.target.closest?.("[data-trial]")?.dataset.trial;
      if (trial === undefined) return;
      for (const each of document.querySelectorAll(`[data-trial="${trial}"]`)) each.classList.toggle("hot", on);
    };
    document.addEventListener("pointerover", (event) => mark(event, true));
    document.addEventListener("pointerout", (event) => mark(event, false));
  }

  function selectOnFocus() {
    for (const field of document.querySelectorAll("textarea")) field.addEventListener("focus", () => field.select());
  }

  const data = JSON.parse(document.getElementById("report-data").textContent);
  document.documentElement.classList.add("js");
  draw(data);
  redrawOnResize(data);
  document.querySelectorAll("table").forEach(enableSorting);
  linkTrials();
  selectOnFocus();
})();
