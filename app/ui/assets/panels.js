// Draws the panels from the JSON in props.value. Words and numbers come ready from the server.
const root = element.querySelector(".panels");

const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const svgNode = (tag, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};
const colour = (name) => getComputedStyle(root).getPropertyValue("--xf-" + name).trim();

const section = (title, caption) => {
  const box = make("section", "panel");
  box.append(make("h3", "", title));
  const body = make("div", "panel-body");
  box.append(body, make("p", "caption", caption));
  root.append(box);
  return body;
};

root.textContent = "";
root.append(make("p", "empty panels-empty",
  "As soon as the model is ready you see here: speed and hit rate, what the memory is used for, " +
  "which experts are in it, what is fetched while an answer is written, and how long computing waited for it."));
const tilesBox = make("div", "tiles");
root.append(tilesBox);
const whatIfBox = section("What other budgets would give", "");
const memoryBox = section("Memory", "");
memoryBox.parentNode.classList.add("panel-memory");
const heatBox = section("Experts", "One row a layer, one cell an expert. Brighter: used more often.");
const hitBox = section("When an expert was needed",
  "Share of needs, second by second. Ready: no wait. On its way: a short wait. Absent: fetched while you wait.");
const linkBox = section("Moved into memory", "");
const foresightBox = section("Foreseen", "");
const stallBox = section("Time spent waiting", "Share of each second in which computing waited for an expert.");

// -- tiles
const drawTiles = (tiles) => {
  tilesBox.replaceChildren(...tiles.map((tile) => {
    const box = make("div", "tile" + (tile.kind ? " tile-" + tile.kind : ""));
    const value = make("div", "tile-value", tile.value);
    value.append(make("span", "tile-unit", tile.unit));
    box.append(make("div", "tile-label", tile.label), value, make("div", "tile-hint", tile.hint));
    return box;
  }));
};

// -- bars and legends
const legend = (entries) => {
  const list = make("ul", "legend");
  for (const [key, label, words] of entries) {
    const item = make("li");
    item.append(make("span", "swatch fill-" + key), make("span", "", label));
    if (words) item.append(make("b", "", words));
    list.append(item);
  }
  return list;
};
const bar = (parts, label) => {
  const box = make("div", "bar");
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", label);
  for (const part of parts) {
    const piece = make("span", "fill-" + part.key);
    piece.style.flexGrow = part.bytes;
    piece.title = part.label + ": " + part.words;
    box.append(piece);
  }
  return box;
};
const spoken = (parts) => parts.map((part) => part.label + " " + part.words).join(", ");

const drawMemory = (memory) => {
  const left = { key: "outside", label: "Left outside", bytes: memory.left_out_bytes, words: memory.left_out_words };
  const model = memory.left_out_bytes > 0 ? [...memory.owners, left] : memory.owners;
  const title = make("p", "bar-title");
  title.append(make("span", "", "This model"), make("b", "", `${memory.total_words} in memory, ${memory.model_words} on disk`));
  const machineTitle = make("p", "bar-title");
  machineTitle.append(make("span", "", memory.machine_name), make("b", "", memory.machine_words));
  memoryBox.replaceChildren(
    title, bar(model, spoken(model)), legend(model.map((p) => [p.key, p.label, p.words])),
    machineTitle, bar(memory.machine, spoken(memory.machine)),
    legend(memory.machine.map((p) => [p.key, p.label, p.words])));
};

// -- stacked columns over time
const HEIGHT = 44, FEWEST_COLUMNS = 40;
const chart = (rows, kinds, top, label) => {
  const WIDTH = Math.max(FEWEST_COLUMNS, rows.length);
  const picture = svgNode("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "chart", role: "img", "aria-label": label });
  const base = new Array(rows.length).fill(0);
  for (const kind of kinds) {
    let path = "";
    rows.forEach((row, index) => {
      const height = top(row) > 0 ? Math.min((row[kind] / top(row)) * HEIGHT, HEIGHT) : 0;
      if (height <= 0) return;
      const x = WIDTH - rows.length + index;
      path += `M${x} ${HEIGHT - base[index]}v${-height}h.86v${height}z`;
      base[index] += height;
    });
    picture.append(svgNode("path", { d: path, class: "ink-" + kind }));
  }
  return picture;
};
const empty = (words) => make("p", "empty", words);
const axis = (from, to) => {
  const line = make("div", "axis");
  line.append(make("span", "", from), make("span", "", to));
  return line;
};
const span = (rows) => {
  const seconds = Math.round(rows.reduce((sum, row) => sum + row.seconds, 0));
  return seconds > 90 ? `the last ${Math.round(seconds / 60)} minutes of answering` : `the last ${seconds} s of answering`;
};
const inWords = (bytes) => bytes >= 1e9 ? (bytes / 1e9).toFixed(1) + " GB" : bytes >= 1e6 ? Math.round(bytes / 1e6) + " MB" : Math.round(bytes / 1e3) + " kB";

const drawHits = (rows, totals) => {
  const entries = [["hit", "ready", totals.hit], ["late", "on its way", totals.late], ["miss", "absent", totals.miss]];
  const picture = rows.length
    ? [chart(rows, ["hit", "late", "miss"], (row) => row.hit + row.late + row.miss, "Share of ready, arriving and absent experts over time"), axis(span(rows), "now")]
    : [empty("Ask something: each second of the answer becomes a column here.")];
  hitBox.replaceChildren(...picture, legend(entries));
};
const drawLink = (rows, totals, link) => {
  const entries = [["demand", "demanded", totals.demand], ["used", "fetched ahead, used", totals.used], ["wasted", "fetched ahead, wasted", totals.wasted]];
  const most = Math.max(0, ...rows.map((row) => (row.demand + row.used + row.wasted) / Math.max(row.seconds, 0.1)));
  const scaled = rows.map((row) => Object.fromEntries(["demand", "used", "wasted"].map((kind) => [kind, row[kind] / Math.max(row.seconds, 0.1)])));
  let picture;
  if (!rows.length) picture = [empty("What is read into memory during an answer appears here.")];
  else if (!most) picture = [empty("Nothing had to be moved: every expert that was needed was already there.")];
  else picture = [chart(scaled, ["demand", "used", "wasted"], () => most, "Bytes moved into memory over time"), axis(span(rows), "now")];
  linkBox.replaceChildren(...picture, legend(entries));
  linkBox.nextSibling.textContent = most
    ? `Bytes a second over the link (${link}); the tallest column is ${inWords(most)}/s.`
    : `Bytes a second over the link (${link}).`;
};
// -- lines over the budget
const line = (xs, ys, kind) => svgNode("polyline", {
  points: xs.map((x, index) => `${x},${HEIGHT - ys[index] * (HEIGHT - 4)}`).join(" "), class: "line line-" + kind });
const drawWhatIf = (found) => {
  whatIfBox.parentNode.hidden = !found;
  if (!found) return;
  const picture = svgNode("svg", { viewBox: `0 0 100 ${HEIGHT}`, preserveAspectRatio: "none", class: "chart", role: "img",
    "aria-label": "Hit rate and speed by percent of the experts in memory" });
  for (const mark of found.marks) {
    picture.append(svgNode("line", { x1: mark.percent, x2: mark.percent, y1: 0, y2: HEIGHT, class: "line line-mark" }));
  }
  picture.append(line(found.percent, found.hit, "hit"));
  const entries = [["hit", "experts ready", found.hit_now]];
  if (found.speed.length) {
    picture.append(line(found.percent, found.speed, "speed"));
    entries.push(["dense", "speed", found.speed_now]);
  }
  const marks = make("div", "marks marks-chart");
  for (const mark of found.marks) {
    const end = mark.percent < 12 ? " mark-first" : mark.percent > 85 ? " mark-last" : "";
    const label = make("span", "mark" + end, mark.label);
    label.style.left = mark.percent + "%";
    marks.append(label);
  }
  whatIfBox.replaceChildren(picture, marks, legend(entries));
  whatIfBox.nextSibling.textContent = found.caption;
};
const drawForesight = (foresight) => {
  foresightBox.parentNode.hidden = !foresight;
  if (!foresight) return;
  const entries = [["foreseen", "before the token", foresight.foreseen], ["corrected", "corrected in time", foresight.corrected],
    ["outside", "fetches taken back", foresight.cancelled]];
  const picture = foresight.layers.length
    ? [chart(foresight.layers, ["foreseen", "corrected"], () => 100, "Share of used experts that were foreseen, by layer"), axis("first layer", "last layer")]
    : [empty("How much of what is used was foreseen appears with the first answer.")];
  foresightBox.replaceChildren(make("p", "readout", foresight.words), ...picture, legend(entries));
  foresightBox.nextSibling.textContent = `Share of the experts used that were foreseen, layer by layer. ${foresight.source}`;
};
const drawStall = (rows) => {
  stallBox.replaceChildren(...(rows.length
    ? [chart(rows, ["stall"], () => 1, "Share of time spent waiting"), axis(span(rows), "now")]
    : [empty("Appears with the first answer.")]));
};

// -- heat map
const canvas = make("canvas", "heat");
const readout = make("p", "readout");
const heatLegend = legend([["experts", "in memory"], ["late", "arriving"], ["outside", "outside"]]);
heatBox.append(canvas, readout, heatLegend);
let heat = null;
const decode = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const mix = (from, to, share) => {
  const parse = (text) => text.match(/[\da-f]{2}/gi).map((part) => parseInt(part, 16));
  const [a, b] = [parse(from), parse(to)];
  return `rgb(${a.map((value, index) => Math.round(value + (b[index] - value) * share)).join(",")})`;
};
const STATES = ["outside memory", "arriving", "in memory"];

const drawHeat = () => {
  if (!heat || !canvas.clientWidth) return;
  const scale = window.devicePixelRatio || 1;
  const rowHeight = Math.max(3, Math.min(10, Math.floor(260 / heat.layers)));
  const width = canvas.clientWidth, height = rowHeight * heat.layers;
  canvas.width = width * scale; canvas.height = height * scale; canvas.style.height = height + "px";
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const gap = width / heat.experts > 5 ? 1 : 0;
  const shades = [["absent-weak", "absent-strong"], ["late", "late"], ["resident-weak", "resident-strong"]].map((pair) => pair.map(colour));
  const most = Math.max(1, ...heat.uses);
  for (let layer = 0; layer < heat.layers; layer++)
    for (let expert = 0; expert < heat.experts; expert++) {
      const index = layer * heat.experts + expert;
      const [weak, strong] = shades[heat.states[index]];
      pen.fillStyle = mix(weak, strong, Math.sqrt(heat.uses[index] / most));
      const left = Math.round((expert * width) / heat.experts), right = Math.round(((expert + 1) * width) / heat.experts);
      pen.fillRect(left, layer * rowHeight, right - left - gap, rowHeight - (rowHeight > 3 ? 1 : 0));
    }
};
const summary = () => {
  if (!heat) return;
  readout.textContent = `${heat.resident} of ${heat.total} experts in memory` + (heat.used ? "" : ". Ask something and watch which are used.");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", readout.textContent);
};
canvas.addEventListener("mousemove", (event) => {
  if (!heat) return;
  const expert = Math.floor((event.offsetX / canvas.clientWidth) * heat.experts);
  const layer = Math.floor((event.offsetY / canvas.clientHeight) * heat.layers);
  const index = layer * heat.experts + expert;
  if (!(index in heat.states)) return;
  readout.textContent = `Layer ${layer + 1}, expert ${expert + 1}: ${STATES[heat.states[index]]}, used ${heat.uses[index].toLocaleString("en")} times`;
});
canvas.addEventListener("mouseleave", summary);
new ResizeObserver(drawHeat).observe(canvas);
new MutationObserver(drawHeat).observe(document.body, { attributes: true, attributeFilter: ["class"] });

// -- all
const shownWords = {};
const write = (id, html) => {
  const place = document.querySelector(`#${id} .prose`);
  if (!place || shownWords[id] === html) return;
  place.innerHTML = html;
  shownWords[id] = html;
};
const draw = () => {
  const reading = props.value ? JSON.parse(props.value) : {};
  Object.entries(reading.words || {}).forEach(([id, html]) => write(id, html));
  const data = reading.panels;
  root.classList.toggle("is-empty", !data);
  root.classList.toggle("is-planned", !data && Boolean(reading.memory));
  if (!data && reading.memory) drawMemory(reading.memory);
  if (!data) return;
  drawTiles(data.tiles);
  drawWhatIf(data.what_if);
  drawMemory(data.memory);
  heat = { ...data.heat, states: decode(data.heat.residency) };
  drawHeat();
  if (!canvas.matches(":hover")) summary();
  drawHits(data.series, data.totals);
  drawLink(data.series, data.totals, data.link);
  drawForesight(data.foresight);
  drawStall(data.series);
};
watch("value", draw);
draw();
