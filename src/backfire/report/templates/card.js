// Sorting and filtering of tables. The page is complete without it.
"use strict";
for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0];
  const heads = table.querySelectorAll("thead th[data-column]");
  const status = document.getElementById("status");
  const rank = (row, column) => {
    const cell = row.querySelector(`[data-column="${column}"]`);
    const value = cell.dataset.sort;
    return value === "" ? null : cell.dataset.kind === "number" ? Number(value) : value;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.querySelector(".title").childNodes);
    head.querySelector(".title").append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [rank(row, head.dataset.column), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null); // absent values stay last
        return down ? compare(b, a) : compare(a, b);
      });
      body.append(...rows.map(([, row]) => row));
      body.classList.add("sorted");
      status.textContent = `sorted by ${button.textContent}, ${down ? "descending" : "ascending"}`;
    });
  }

  if (table.dataset.filter === undefined) continue;
  const label = document.createElement("label");
  label.className = "filter";
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = "e.g. sdd lora";
  const count = document.createElement("output");
  label.append("Show rows with ", input, count);
  table.closest(".scroll").before(label);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.dataset.search;
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = words.length ? `${shown} of ${body.rows.length}` : "";
  });
}
