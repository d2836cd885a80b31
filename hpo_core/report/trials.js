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

// Left of the point, where the best so far is never as good; without room there, on the side where no trial is better.
function labelBest(root, data, x, y, left) {
  const best = data.trials.find((trial) => trial.number === data.best);
  const text = `best ${short(best.objective)}`;
  const across = x.at(best.number);
  const height = y.at(best.objective);
  const roomy = across - left > text.length * (LETTER + 1) + 18;
  const attributes = roomy
    ? { x: across - 15, y: height + 4, "text-anchor": "end" }
    : { x: across + 4, y: height + (data.objective.minimize ? 26 : -16) };
  root.append(svg("text", { class: "halo strong", ...attributes }, text));
}

const hasMissing = (data) => data.trials.some((trial) => trial.objective === null);

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
  const y = objectiveScale(data, bottom - (hasMissing(data) ? 22 : 14), 38, 6);
  const left = widest(y) + 10;
  const last = data.trials[data.trials.length - 1].number;
  const count = Math.floor((width - left) / 60);
  const x = linearScale(...widened(Math.min(1, last), last), left + 12, width - 12, { count, integer: true });
  leftAxis(root, y, left, width, data.objective.name);
  bottomAxis(root, x, bottom, { left, right: width, titleAt: bottom + 39 }, "trial");
  drawGoal(root, data, y, left, width);
  drawCourse(root, data, x, y);
  drawTrials(root, data, (trial) => x.at(trial.number), y, bottom);
  if (data.best !== null) labelBest(root, data, x, y, left);
  return root;
}

function parameterPlot(place, data) {
  const index = Number(place.dataset.index);
  const parameter = data.parameters[index];
  const extra = tiltedHeight(parameter, place.clientWidth - 60);
  const label = `${data.objective.name} against ${parameter.name}`;
  const { root, width, height } = canvas(place, 230 + extra, { label });
  const bottom = height - extra - 44;
  const y = objectiveScale(data, bottom - (hasMissing(data) ? 20 : 14), 34, 4);
  const left = widest(y) + 10;
  const x = parameterScale(parameter, left, width);
  leftAxis(root, y, left, width, data.objective.name);
  const title = parameter.log ? `${parameter.name} (log scale)` : parameter.name;
  bottomAxis(root, x, bottom, { left, right: width, titleAt: height - 5 }, title);
  drawTrials(root, data, (trial) => placeOf(trial, index, x, 60), y, bottom);
  return root;
}
