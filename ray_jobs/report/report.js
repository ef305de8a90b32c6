"use strict";

// Tables: a click on a column's title sorts by it, a second one the other way round; empty fields stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sortBy(table.tBodies[0], column, down ? -1 : 1);
    });
  });
}

function sortBy(body, column, direction) {
  const orderOf = (row) => row.cells[column].dataset.order;
  const compare = (a, b) =>
    isNaN(a) || isNaN(b) ? (a < b ? -1 : a > b ? 1 : 0) : Number(a) - Number(b);
  const rows = [...body.rows];
  rows.sort((one, other) => {
    const a = orderOf(one), b = orderOf(other);
    if (a === "" || b === "") return (a === "") - (b === "");
    return direction * compare(a, b);
  });
  body.append(...rows);
}

// Sliders: the pictures are those of the grid below, so that each lies in the page only once.
for (const slider of document.querySelectorAll(".slider")) {
  const cells = [...slider.closest("section").querySelectorAll(".grid img")];
  const without = slider.querySelector("select.method");
  const way = slider.querySelector("select.way");
  const range = slider.querySelector("input");
  const stack = slider.querySelector(".stack");

  // The text alone knows no mode: then the method's one picture stands for all.
  const find = (method, mode) => {
    const made = cells.filter((img) => img.dataset.method === method);
    return made.find((img) => img.dataset.way === mode) ?? made[0];
  };
  const place = (img, side) => {
    const copy = img.cloneNode();
    copy.className = side;
    return copy;
  };
  const show = () => {
    stack.replaceChildren(
      place(find(without.value, way.value), "without"),
      place(find(slider.dataset.with, way.value), "with"),
    );
  };
  const cut = () => stack.style.setProperty("--cut", `${range.value}%`);
  without.addEventListener("change", show);
  way.addEventListener("change", show);
  range.addEventListener("input", cut);
  show();
  cut();
  slider.hidden = false;
}
