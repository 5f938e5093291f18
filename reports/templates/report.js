// What the page adds where scripts run: sortable tables, sliders over crops, the current section in the contents.
"use strict";

const collator = new Intl.Collator("en", { numeric: true });

// Text without the hidden detail; nothing and a dash sort last.
function textOf(cell) {
  const text = cell.innerText.trim();
  return text === "—" ? "" : text;
}

// Sort keys of a column: numbers where any cell has one, else text; undefined sorts last.
function keysOf(rows, column) {
  const cells = rows.map((row) => row.cells[column]);
  if (!cells.some((cell) => "value" in cell.dataset)) return cells.map((cell) => textOf(cell) || undefined);
  return cells.map((cell) => ("value" in cell.dataset ? Number(cell.dataset.value) : undefined));
}

function sorted(rows, column, descending) {
  const keys = new Map(keysOf(rows, column).map((key, index) => [rows[index], key]));
  const sign = descending ? -1 : 1;
  return [...rows].sort((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * (typeof a === "number" ? Math.sign(a - b) || 0 : collator.compare(a, b));
  });
}

// A click on a heading: ascending, descending, the original order.
function makeSortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  if (original.length < 2) return;
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
      const order = next === undefined ? "ascending" : next;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (order) head.setAttribute("aria-sort", order);
      body.append(...(order ? sorted(original, column, order === "descending") : original));
    });
  });
}

function makeSelect(name, labels, index, choose) {
  const label = document.createElement("label");
  const select = document.createElement("select");
  labels.forEach((text, place) => select.add(new Option(text, place)));
  select.selectedIndex = index;
  select.addEventListener("change", () => choose(select.selectedIndex));
  label.append(`${name} `, select);
  choose(index);
  return label;
}

// Two of the pictures over each other, the left one cut off at the slider.
function makeSlider(figure) {
  const shots = [...figure.querySelectorAll(".shot")];
  if (shots.length < 2) return;
  const pictures = shots.map((shot) => shot.querySelector("img"));
  const labels = shots.map((shot) => shot.innerText.trim().replace(/\s+/g, " "));
  const [after, before, range] = ["img", "img", "input"].map((tag) => document.createElement(tag));
  const stage = document.createElement("div");
  const show = (image) => (index) => Object.assign(image, { src: pictures[index].src, alt: labels[index] });
  const pick = document.createElement("div");
  pick.className = "pick";
  pick.append(
    makeSelect("Left", labels, Number(figure.dataset.before), show(before)),
    makeSelect("Right", labels, Number(figure.dataset.after), show(after)),
  );
  Object.assign(range, { type: "range", min: 0, max: 100, step: "any", value: 50 });
  range.setAttribute("aria-label", "Where the left picture ends, per cent of the width");
  const cut = () => stage.style.setProperty("--cut", `${range.value}%`);
  range.addEventListener("input", cut);
  cut();
  const width = Math.max(...pictures.map((picture) => Number(picture.getAttribute("width"))));
  stage.className = "stage";
  stage.style.width = `${width * Math.max(3, Math.round(448 / width))}px`;
  stage.append(after, before, range);
  figure.classList.add("live");
  figure.prepend(pick, stage);
}

// The contents list marks the last section whose start has been passed.
function followSections() {
  const links = [...document.querySelectorAll("nav a")];
  const sections = links.map((link) => document.getElementById(link.hash.slice(1)));
  const mark = () => {
    const passed = sections.filter((section) => section && section.getBoundingClientRect().top < innerHeight / 3);
    const current = passed.length ? sections.indexOf(passed[passed.length - 1]) : 0;
    links.forEach((link, index) => link.setAttribute("aria-current", String(index === current)));
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}

document.querySelectorAll("main table").forEach(makeSortable);
document.querySelectorAll(".slider").forEach(makeSlider);
followSections();
// Escape puts a detail away until the pointer or the focus moves.
const quiet = (on) => () => document.body.classList.toggle("quiet", on);
addEventListener("keydown", (event) => event.key === "Escape" && quiet(true)());
["mouseover", "focusin"].forEach((kind) => addEventListener(kind, quiet(false)));
