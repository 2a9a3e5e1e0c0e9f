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

// Search fields and choices: show what all of those for the same things let pass.
const choices = {
  "": () => true,
  remarked: (item) => "remarked" in item.dataset,
  open: (item) => !item.dataset.rating,
  rejected: (item) => item.dataset.rating === "reject",
};
const passes = (field, item) => field.tagName === "SELECT"
  ? choices[field.value](item)
  : item.dataset.name.toLowerCase().includes(field.value.toLowerCase());
for (const field of document.querySelectorAll("[data-filters]")) {
  const what = field.dataset.filters;
  const together = [...document.querySelectorAll("[data-filters]")]
    .filter((other) => other.dataset.filters === what);
  field.addEventListener("input", () => {
    for (const item of document.querySelectorAll(what)) {
      item.hidden = !together.every((other) => passes(other, item));
    }
    const wall = document.querySelector(what).closest(".wall");
    wall?.classList.toggle("filtered", together.some((other) => other.value));
  });
}

// Pseudo-labels: a name or a point opens the picture of its row; arrows go on to the next row.
const viewer = document.querySelector("#viewer");
if (viewer) {
  const table = document.querySelector("#scores");
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent.trim());
  const links = () => [...table.querySelectorAll("tr:not([hidden]) a.opens")];
  let now = null;
  const open = (link) => {
    if (!link) return;
    now = link;
    const cells = [...link.closest("tr").cells].map((cell) => cell.textContent.trim());
    viewer.querySelector("#viewer-title").textContent = link.textContent;
    viewer.querySelector("#viewer-image").src = link.href;
    viewer.querySelector("#viewer-image").alt = `Slices of ${link.textContent} with its pseudo-label`;
    viewer.querySelector("#viewer-numbers").textContent = heads
      .map((head, i) => [head, cells[i]])
      .filter(([head, cell]) => cell && head !== "Scan" && head !== "Final mask")
      .map(([head, cell]) => `${head}: ${cell}`).join(" · ");
    const page = viewer.querySelector("#viewer-page");
    page.hidden = !link.dataset.page;
    page.href = link.dataset.page;
    if (!viewer.open) viewer.showModal();
  };
  const step = (by) => open(links()[links().indexOf(now) + by]);
  table.addEventListener("click", (event) => {
    const link = event.target.closest("a.opens");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(link);
  });
  viewer.addEventListener("close", () => now.focus());
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight" || event.key === "ArrowDown") step(1);
    else if (event.key === "ArrowLeft" || event.key === "ArrowUp") step(-1);
    else return;
    event.preventDefault();
  });
  viewer.querySelector("#viewer-close").addEventListener("click", () => viewer.close());
  viewer.querySelector("#viewer-back").addEventListener("click", () => step(-1));
  viewer.querySelector("#viewer-next").addEventListener("click", () => step(1));
  const points = (group) => [...document.querySelectorAll(`[id="${group}"] :is(path, use)`)]
    .filter((shape) => !shape.closest("defs"));
  const left = {}; // of each group: its points, in the order of the rows
  for (const row of table.tBodies[0].rows) {
    const { group } = row.dataset;
    const point = (left[group] ??= points(group)).shift();
    const link = row.querySelector("a.opens");
    if (!point || !link) continue;
    point.classList.add("opens");
    point.append(document.createElementNS(point.namespaceURI, "title"));
    point.lastChild.textContent = link.textContent;
    point.addEventListener("click", () => open(link));
  }
}

// Ratings: kept in this browser, exported as TSV or JSON, read back from either. Those kept here are
// of one model's masks, and left out where another has made the mask since.
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
    if (!row || (row.model ?? card.dataset.model) !== card.dataset.model) continue;
    for (const radio of card.querySelectorAll("input[type=radio]")) {
      radio.checked = radio.value === row.rating;
    }
    card.querySelector(".comment").value = row.comment;
    mark(card);
  }
  count();
};
const save = () => {
  const models = Object.fromEntries(cards.map((card) => [card.dataset.scan, card.dataset.model]));
  const rows = rated().map((row) => ({ ...row, model: models[row.scan] }));
  try { localStorage.setItem(place, JSON.stringify(rows)); } catch { /* no storage: export */ }
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
    card.addEventListener("keydown", (event) => {
      const rating = { a: "accept", r: "reject" }[event.key];
      const writing = event.target.matches(".comment");
      if (!rating || writing || event.ctrlKey || event.metaKey || event.altKey) return;
      card.querySelector(`input[value=${rating}]`).click();
      const shown = cards.filter((other) => !other.hidden);
      shown[shown.indexOf(card) + 1]?.querySelector("input:checked").focus();
    });
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
