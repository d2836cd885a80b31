/* Plots with a mark for each trial: the objective by trial, and against each parameter. */

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
  if (!best) return mark;
  return svg("g", {}, mark, svg("circle", { class: "ring", cx: x, cy: y, r: size + 5 }));
}

function rug(trial, x, y) {
  const attributes = { class: `tick c-${trial.condition}`, "data-trial": trial.number, x1: x, x2: x, y1: y - 12, y2: y - 3 };
  return svg("line", attributes);
}

// Trials with a value as points, the best one last and so on top; the others as ticks at the bottom.
function drawTrials(root, data, place, y, bottom) {
  const size = data.trials.length > 200 ? 2.5 : data.trials.length > 60 ? 3.5 : 4.5;
  const order = [...data.trials].sort((one, other) => (one.number === data.best) - (other.number === data.best));
  for (const trial of order) {
    const x = place(trial);
    if (x === null) continue;
    root.append(trial.objective === null ? rug(trial, x, bottom) : point(trial, data, x, y.at(trial.objective), size));
  }
}

// The goal's label stands at the end that is farther from the best trial.
function drawGoal(root, data, x, y, { left, right }) {
  const goal = data.objective.goal;
  if (goal === null) return;
  if (y.near) {
    const line = y.at(goal);
    root.append(svg("line", { class: "goal", x1: left, x2: right, y1: line, y2: line }));
    const isLeft = data.best === null || x.at(data.best) > (left + right) / 2;
    const end = isLeft ? { x: left + 6, "text-anchor": "start" } : { x: right - 6, "text-anchor": "end" };
    root.append(svg("text", { class: "halo", ...end, y: line - 6 }, `goal ${short(goal)}`));
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

// On the side where no better trial can be; `bottomRoom` and the space over the plot keep it free.
function labelBest(root, data, x, y, { left, right }) {
  const best = data.trials.find((trial) => trial.number === data.best);
  const text = `best ${short(best.objective)}`;
  const half = (text.length * (LETTER + 0.8)) / 2;
  const middle = Math.min(Math.max(x.at(best.number), left + half), right - half);
  const height = y.at(best.objective) + (data.objective.minimize ? 24 : -15);
  root.append(svg("text", { class: "halo strong", x: middle, y: height, "text-anchor": "middle" }, text));
}

// Pixels under the lowest value: for the ticks of trials without a value, and the label of a best one that is low.
function bottomRoom(data, label) {
  return 12 + (data.trials.some((trial) => trial.objective === null) ? 10 : 0) + (label && data.objective.minimize ? 18 : 0);
}

function legendEntry(symbol, text) {
  return html("li", {}, svg("svg", { width: 16, height: 14, "aria-hidden": "true" }, symbol), text);
}

function legend(place, data) {
  const present = Object.keys(data.conditions).filter((name) => data.trials.some((trial) => trial.condition === name));
  const entries = present.map((name) => {
    const valued = data.trials.some((trial) => trial.condition === name && trial.objective !== null);
    const mark = valued ? shape(name, 8, 7, 4.5) : svg("line", { x1: 8, x2: 8, y1: 2.5, y2: 11.5 });
    mark.setAttribute("class", `${valued ? "mark" : "tick"} c-${name}`);
    return legendEntry(mark, data.conditions[name] + (valued ? "" : " (no value)"));
  });
  const course = svg("path", { class: "course", d: "M0 10H8V4H16" });
  return html("ul", { class: "legend" }, ...entries, legendEntry(course, "best so far"));
}

function objectivePlot(place, data) {
  const label = `${data.objective.name} of each trial, and the best so far`;
  const { root, width, height } = canvas(place, 330, { label });
  const bottom = height - 46;
  const y = objectiveScale(data, bottom - bottomRoom(data, true), 38, 6);
  const left = widest(y) + 10;
  const last = data.trials[data.trials.length - 1].number;
  const count = Math.floor((width - left) / 60);
  const x = linearScale(...widened(Math.min(1, last), last), left + 12, width - 12, { count, integer: true });
  leftAxis(root, y, left, width, data.objective.name);
  bottomAxis(root, x, bottom, { left, right: width, titleAt: bottom + 39 }, "trial");
  drawGoal(root, data, x, y, { left, right: width });
  drawCourse(root, data, x, y);
  drawTrials(root, data, (trial) => x.at(trial.number), y, bottom);
  if (data.best !== null) labelBest(root, data, x, y, { left, right: width });
  return root;
}

function parameterPlot(place, data) {
  const index = Number(place.dataset.index);
  const parameter = data.parameters[index];
  const extra = tiltedHeight(parameter, place.clientWidth - 60);
  const label = `${data.objective.name} against ${parameter.name}`;
  const { root, width, height } = canvas(place, 230 + extra, { label });
  const bottom = height - extra - 44;
  const y = objectiveScale(data, bottom - bottomRoom(data, false), 34, 4);
  const left = widest(y) + 10;
  const x = parameterScale(parameter, left, width);
  leftAxis(root, y, left, width, data.objective.name);
  const title = parameter.log ? `${parameter.name} (log scale)` : parameter.name;
  bottomAxis(root, x, bottom, { left, right: width, titleAt: height - 5 }, title);
  drawTrials(root, data, (trial) => placeOf(trial, index, x, 60), y, bottom);
  return root;
}
