"use strict";
// Tables are sorted by a click on a column's name, galleries are filtered by a word. Without scripts all stays readable.
const value = (row, column) => {
  const cell = row.cells[column];
  const bar = cell.querySelector(".meter span");
  const text = bar ? bar.style.width : cell.textContent;
  const number = parseFloat(text.replace(/[,\u202f\s%]/g, "").replace("\u2212", "-"));
  return [text === "" || text === "\u2013" ? NaN : number, text];
};
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    const numeric = head.classList.contains("number");
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => {
        if (!numeric) return (down ? 1 : -1) * a[1].localeCompare(b[1], undefined, { numeric: true });
        if (isNaN(a[0]) || isNaN(b[0])) return isNaN(a[0]) - isNaN(b[0]);
        return (down ? -1 : 1) * (a[0] - b[0]);
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
for (const gallery of document.querySelectorAll(".gallery")) {
  const figures = [...gallery.children];
  if (figures.length < 6) continue;
  const field = document.createElement("input");
  const count = document.createElement("output");
  const line = document.createElement("p");
  field.type = "search";
  field.placeholder = "filter by class or file";
  field.setAttribute("aria-label", "filter the images by class or file");
  const show = () => {
    const word = field.value.trim().toLowerCase();
    for (const figure of figures) figure.hidden = !figure.textContent.toLowerCase().includes(word);
    const left = figures.filter((figure) => !figure.hidden).length;
    count.textContent = word ? ` ${left} of ${figures.length}` : "";
  };
  field.addEventListener("input", show);
  line.className = "filter";
  line.append(field, count);
  gallery.before(line);
}
