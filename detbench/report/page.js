"use strict";
// Sorting by a column's button: measured numbers best first, a second press turns it round; the first column gives
// the paper's order back. Rows without a number stay last.
for (const table of document.querySelectorAll(".table table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const upwardsFirst = column === 0 || head.hasAttribute("data-lower-is-better");
      const now = head.getAttribute("aria-sort");
      const upwards = now === "none" ? upwardsFirst : now === "descending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
        return (value(a) - value(b)) * (upwards ? 1 : -1);
      });
      body.append(...rows);
    });
  });
}
// On paper everything is open.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll(".rows > details, details.more")) details.open = true;
});
