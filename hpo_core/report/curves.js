/* Metric curves: a line for each trial over its reports of one metric. And how a line near the pointer is found. */

const NEAR = 14; // A line this near to the pointer is meant, in pixels.

function distance([x, y], [ax, ay], [bx, by]) {
  const [dx, dy] = [bx - ax, by - ay];
  const along = Math.min(Math.max(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy || 1), 0), 1);
  return Math.hypot(x - ax - along * dx, y - ay - along * dy);
}

function nearest(lines, at) {
  let found = null;
  let least = NEAR;
  for (const each of lines) {
    if (each.line.classList.contains("off")) continue;
    for (let index = 1; index < each.places.length; index += 1) {
      const far = distance(at, each.places[index - 1], each.places[index]);
      if (far <= least) [found, least] = [each, far];
    }
  }
  return found;
}

function hoverLines(root, lines, data) {
  root.addEventListener("pointermove", (event) => {
    if (root.classList.contains("brushing")) return;
    const { left, top } = root.getBoundingClientRect();
    const found = nearest(lines, [event.clientX - left, event.clientY - top]);
    pointOut(found ? found.trial.number : null);
    if (found) showTip(found.trial, data, { x: event.clientX, y: event.clientY });
    else hideTip();
  });
  root.addEventListener("pointerleave", () => {
    pointOut(null);
    hideTip();
  });
}

// Arrow keys go from line to line, the best first; what is said goes to a live region.
function stepLines(root, lines, data) {
  const order = [...lines].reverse();
  const live = html("p", { class: "unseen", "aria-live": "polite" });
  let at = -1;
  const leave = () => {
    pointOut(null);
    hideTip();
  };
  root.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    at = (at + by + order.length) % order.length;
    const { trial, places } = order[at];
    const { left, top } = root.getBoundingClientRect();
    const [x, y] = places[places.length - 1];
    pointOut(trial.number);
    showTip(trial, data, { x: left + x, y: top + y });
    live.textContent = `Trial ${trial.number}: ${facts(trial, data).map((entry) => entry.join(" ")).join(", ")}`;
  });
  root.addEventListener("blur", leave);
  return live;
}

// The worst first, over them those that run, and the best one on top.
function curveOrder(entries, data) {
  const running = entries.filter(({ trial }) => trial.objective === null);
  const byTrial = new Map(entries.map((entry) => [entry.trial, entry]));
  const valued = drawingOrder(entries.map(({ trial }) => trial).filter((trial) => trial.objective !== null), data);
  const top = valued.length && valued[valued.length - 1].number === data.best ? [valued.pop()] : [];
  return [...valued.map((trial) => byTrial.get(trial)), ...running, ...top.map((trial) => byTrial.get(trial))];
}

function curveLine({ trial, curve }, x, y, data) {
  const places = curve.values.map((value, index) => [x.at(curve.indexes ? curve.indexes[index] : index + 1), y.at(value)]);
  return { line: linePath(places, "polyline", trial, data), places, trial };
}

// Where a trial ended otherwise than by itself, or where it is now.
function endMark({ trial, places }) {
  if (trial.condition === "Succeeded") return null;
  const [x, y] = places[places.length - 1];
  return fill(shape(trial.condition, x, y, 3), { class: `mark c-${trial.condition}`, "data-trial": trial.number }, []);
}

const chosenMetric = () => Number(document.querySelector("input[name=curve]:checked")?.value ?? 0);

function curvesPlot(place, data) {
  const [name, curves] = Object.entries(data.curves)[chosenMetric()];
  const byNumber = new Map(data.trials.map((trial) => [trial.number, trial]));
  const entries = curveOrder(curves.map((curve) => ({ curve, trial: byNumber.get(curve.trial) })), data);
  const label = `${name} over the reports of each trial; arrow keys go through the trials, the best first`;
  const { root, width, height } = canvas(place, 330, { label, role: "group" });
  const bottom = height - 46;
  const y = valueScale(curves.flatMap((curve) => curve.values), bottom - 8, 38, 6);
  const left = widest(y) + 10;
  const last = Math.max(...curves.map((curve) => (curve.indexes ? curve.indexes[curve.indexes.length - 1] : curve.values.length)));
  const x = linearScale(1, last, left + 12, width - 12, { count: Math.floor((width - left) / 60), integer: true });
  leftAxis(root, y, left, width, name);
  bottomAxis(root, x, bottom, { left, right: width, titleAt: bottom + 39 }, "report");
  const lines = entries.map((entry) => curveLine(entry, x, y, data));
  root.append(svg("g", {}, ...lines.map(({ line }) => line)), ...lines.map(endMark).filter(Boolean));
  root.append(svg("polyline", { class: "over" }));
  root.setAttribute("tabindex", 0);
  root.classList.add(density(lines.length * 2));
  hoverLines(root, lines, data);
  return html("div", {}, root, stepLines(root, lines, data));
}

function curveLegend(place, data) {
  const numbers = new Set(Object.values(data.curves).flat().map((curve) => curve.trial));
  const shown = data.trials.filter((trial) => numbers.has(trial.number));
  const others = Object.keys(data.conditions).filter((name) => name !== "Succeeded" && shown.some((trial) => trial.condition === name));
  const entries = others.map((name) => {
    const mark = fill(shape(name, 8, 7, 4), { class: `mark c-${name}` }, []);
    return legendEntry(mark, data.conditions[name]);
  });
  const line = (shade) => svg("polyline", { class: `line ${shade}`, points: "0,7 16,7" });
  const best = numbers.has(data.best) ? [legendEntry(line("winner"), "best trial")] : [];
  const better = shown.some((trial) => trial.shade !== null) ? [legendEntry(line("s7"), "better"), legendEntry(line("s3"), "worse")] : [];
  return html("ul", { class: "legend" }, ...best, ...better, ...entries);
}

function enableChoice(redraw) {
  for (const input of document.querySelectorAll("input[name=curve]")) input.addEventListener("change", redraw);
}
