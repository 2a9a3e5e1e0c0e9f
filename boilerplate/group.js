"use strict";

// Tables: a click on a heading sorts by its column, a second one turns the order round.
const value = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text);
  return Number.isNaN(number) ? text : number;
};
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b
    : typeof a === "number" ? 1 : typeof b === "number" ? -1 // words such as n/a come first
      : a.localeCompare(b);
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.ariaSort === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.ariaSort = down ? "descending" : "ascending";
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => (down ? -1 : 1) * compare(value(a, column), value(b, column)));
    table.tBodies[0].append(...rows);
  }));
}

// Search fields: show what has the word in its name.
for (const field of document.querySelectorAll("input[data-filters]")) {
  field.addEventListener("input", () => {
    for (const item of document.querySelectorAll(field.dataset.filters)) {
      item.hidden = !item.dataset.name.toLowerCase().includes(field.value.toLowerCase());
    }
  });
}

// Ratings: kept in this browser, exported as TSV or JSON, read back from either.
const cards = [...document.querySelectorAll(".card")];
const place = `singlestrip-ratings ${location.pathname}`;
const rated = () => cards.map((card) => ({
  scan: card.dataset.scan,
  rating: card.querySelector("input:checked").value,
  comment: card.querySelector(".comment").value.replace(/\s+/g, " ").trim(),
})).filter((row) => row.rating || row.comment);
const count = () => {
  const rows = rated();
  const of = (word) => rows.filter((row) => row.rating === word).length;
  document.querySelector("#count").textContent =
    `${of("accept")} accepted, ${of("reject")} rejected of ${cards.length}`;
};
const mark = (card) => { card.dataset.rating = card.querySelector("input:checked").value; };
const show = (rows) => {
  const byScan = new Map(rows.map((row) => [row.scan, row]));
  for (const card of cards) {
    const row = byScan.get(card.dataset.scan);
    if (!row) continue;
    for (const radio of card.querySelectorAll("input[type=radio]")) {
      radio.checked = radio.value === row.rating;
    }
    card.querySelector(".comment").value = row.comment;
    mark(card);
  }
  count();
};
const save = () => {
  try { localStorage.setItem(place, JSON.stringify(rated())); } catch { /* no storage: export */ }
  count();
};
const download = (name, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const columns = ["scan", "rating", "comment"];
const toTsv = (rows) =>
  [columns, ...rows.map((row) => columns.map((name) => row[name] || "n/a"))]
    .map((cells) => `${cells.join("\t")}\n`).join("");
const fromTsv = (text) => {
  const [head, ...lines] = text.trim().split(/\r?\n/).map((line) => line.split("\t"));
  return lines.map((cells) => Object.fromEntries(
    head.map((name, i) => [name, cells[i] === "n/a" ? "" : cells[i] ?? ""])));
};
if (cards.length) {
  for (const card of cards) {
    card.addEventListener("input", () => { mark(card); save(); });
  }
  document.querySelector("#export-tsv").addEventListener("click",
    () => download("ratings.tsv", toTsv(rated())));
  document.querySelector("#export-json").addEventListener("click",
    () => download("ratings.json", JSON.stringify(rated(), null, 2)));
  document.querySelector("#import").addEventListener("change", async (event) => {
    const file = event.target.files[0];
    const text = await file.text();
    show(file.name.endsWith(".json") ? JSON.parse(text) : fromTsv(text));
    save();
  });
  try { show(JSON.parse(localStorage.getItem(place) ?? "[]")); } catch { count(); }
}
