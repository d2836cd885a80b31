/* Draws the plots and links them with the table: what is selected or pointed out in one is so in all.
   A plot is a function of (place, data, selection) that returns one element; PLOTS names it, `data-plot` puts it on
   the page. */

const PLOTS = {
  legend,
  objective: objectivePlot,
  parameter: parameterPlot,
  parallel: parallelPlot,
  curves: curvesPlot,
  curveLegend,
};

// --- Which elements are a trial's ---------------------------------------------------------------------------------

const linked = new Map();
let pointed = null;

function link() {
  linked.clear();
  for (const each of document.querySelectorAll("[data-trial]")) {
    const number = Number(each.dataset.trial);
    if (linked.has(number)) linked.get(number).push(each);
    else linked.set(number, [each]);
  }
}

// Marks a trial's elements, lines by a copy on top of all others; null for no trial.
function pointOut(number) {
  if (number === pointed) return;
  for (const each of linked.get(pointed) ?? []) each.classList.remove("hot");
  for (const over of document.querySelectorAll(".over")) over.removeAttribute("points");
  pointed = number;
  for (const each of linked.get(number) ?? []) {
    each.classList.add("hot");
    const over = each.classList.contains("line") && each.closest("svg").querySelector(".over");
    if (over) over.setAttribute("points", each.getAttribute("points"));
  }
}

function enablePointing(data) {
  const byNumber = new Map(data.trials.map((trial) => [String(trial.number), trial]));
  document.addEventListener("pointerover", (event) => {
    const found = event.target.closest?.("[data-trial]:not(.line)");
    if (!found) return;
    pointOut(Number(found.dataset.trial));
    if (found.closest("svg")) showTip(byNumber.get(found.dataset.trial), data, { x: event.clientX, y: event.clientY });
  });
  document.addEventListener("pointerout", (event) => {
    if (!event.target.closest?.("[data-trial]:not(.line)")) return;
    pointOut(null);
    hideTip();
  });
}

// --- Which trials are selected ------------------------------------------------------------------------------------

// Selected is a trial that lies in every range, has the text in its row, and is in one of the chosen conditions, if any
// are chosen.
function makeSelection(data) {
  const hasAxes = data.trials.some((trial) => trial.objective !== null);
  const axes = hasAxes ? axesOf(data) : [];
  const ranges = new Map();
  const only = new Set();
  const texts = rowTexts();
  let text = "";

  const inRange = (trial) =>
    [...ranges].every(([index, [low, high]]) => {
      const share = axes[index].exact(trial);
      return share !== null && share >= low - 1e-9 && share <= high + 1e-9;
    });
  const inText = (trial) => text === "" || (texts.get(trial.number) ?? "").includes(text);
  const isSelected = (trial) => (!only.size || only.has(trial.condition)) && inText(trial) && inRange(trial);

  const selection = { axes, ranges, showRanges: () => {} };
  selection.apply = () => {
    const selected = data.trials.filter(isSelected);
    const numbers = new Set(selected.map((trial) => trial.number));
    for (const [number, elements] of linked) fade(elements, !numbers.has(number));
    showCounts(selected.length, data.trials.length, ranges.size > 0 || only.size > 0 || text !== "");
    selection.showRanges();
  };
  selection.setRange = (index, range) => {
    if (range) ranges.set(index, range);
    else ranges.delete(index);
    selection.apply();
  };
  selection.setText = (wanted) => {
    text = wanted.trim().toLowerCase();
    selection.apply();
  };
  selection.setOnly = (condition, on) => {
    if (on) only.add(condition);
    else only.delete(condition);
    selection.apply();
  };
  selection.clear = () => {
    ranges.clear();
    only.clear();
    text = "";
    selection.apply();
  };
  return selection;
}

// What is not selected fades in the plots and is hidden in the table.
function fade(elements, off) {
  if (elements[0].classList.contains("off") === off) return;
  for (const each of elements) {
    each.classList.toggle("off", off);
    if (each.localName === "tr") each.hidden = off;
  }
}

function showCounts(count, total, narrowed) {
  const words = { selected: total === 1 ? "trial selected" : "trials selected", shown: "shown" };
  for (const each of document.querySelectorAll("[data-count]")) {
    each.textContent = `${counted(count)} of ${counted(total)} ${words[each.dataset.count]}`;
  }
  for (const each of document.querySelectorAll(".clear")) each.hidden = !narrowed;
  for (const each of document.querySelectorAll(".none")) each.hidden = count > 0;
}

// --- The page -----------------------------------------------------------------------------------------------------

function drawInto(place, data, selection) {
  place.replaceChildren(PLOTS[place.dataset.plot](place, data, selection));
}

// A redraw loses the faded state of what it draws anew.
function relink(selection) {
  for (const each of document.querySelectorAll(".off")) each.classList.remove("off");
  pointed = null;
  link();
  selection.apply();
}

function draw(data, selection, which = "[data-plot]") {
  for (const place of document.querySelectorAll(which)) drawInto(place, data, selection);
  relink(selection);
}

function redrawOnResize(redraw) {
  const main = document.querySelector("main");
  let drawn = main.clientWidth;
  new ResizeObserver(() => {
    if (main.clientWidth === drawn) return;
    drawn = main.clientWidth;
    redraw();
  }).observe(main);
}

function selectOnFocus() {
  for (const field of document.querySelectorAll("textarea")) field.addEventListener("focus", () => field.select());
}

function clearOnEscape(selection) {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.target.localName === "input") return;
    selection.ranges.clear();
    selection.apply();
  });
}

const data = JSON.parse(document.getElementById("report-data").textContent);
document.documentElement.classList.add("js");
document.body.append(tip);
const selection = makeSelection(data);
draw(data, selection);
redrawOnResize(() => draw(data, selection));
document.querySelectorAll("table").forEach(enableSorting);
enableFilter(selection);
enablePointing(data);
enableChoice(() => draw(data, selection, "[data-plot=curves]"));
clearOnEscape(selection);
selectOnFocus();
