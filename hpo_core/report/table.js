/* The table: sorting by a click on a header, and what filters it. */

function sortKey(row, column, numeric) {
  const cell = row.cells[column];
  const text = cell.dataset.v ?? cell.textContent;
  if (!numeric) return text === "" ? null : text;
  const value = text === "" ? NaN : Number(text);
  return Number.isNaN(value) ? null : value;
}

const collator = new Intl.Collator("en", { numeric: true });

function compare(one, other) {
  return typeof one === "number" ? one - other : collator.compare(one, other);
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

// Each trial's row as lower-case text, the cells apart; so that no match runs over two cells.
function rowTexts() {
  const rows = [...document.querySelectorAll("tbody tr[data-trial]")];
  const text = (row) => [...row.cells].map((cell) => cell.textContent).join("\n").toLowerCase();
  return new Map(rows.map((row) => [Number(row.dataset.trial), text(row)]));
}

function enableFilter(selection) {
  const field = document.querySelector("input[type=search]");
  field?.addEventListener("input", () => selection.setText(field.value));
  for (const button of document.querySelectorAll("[data-only]")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      selection.setOnly(button.dataset.only, on);
    });
  }
  for (const button of document.querySelectorAll("[data-clear]")) {
    button.addEventListener("click", () => {
      if (field) field.value = "";
      for (const each of document.querySelectorAll("[data-only]")) each.setAttribute("aria-pressed", false);
      selection.clear();
    });
  }
}
