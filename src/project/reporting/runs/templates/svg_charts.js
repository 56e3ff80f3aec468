// Line charts, scatter charts and parallel coordinates as SVG, in the colors of the report.

const SPACE = "http://www.w3.org/2000/svg";
const tip = document.getElementById("tip");

export const COLORS = 8;
export const colorOf = (place) => (place < COLORS ? `c${place}` : "faint");
const SETTING_RATIO = 10, LOSS_RATIO = 50;

// Width of a chart in its own units: text keeps its size on narrow screens.
function chartWidth(isWide, isDense = false) {
  if (isDense) return 960;
  return !isWide ? 480 : document.querySelector("main").clientWidth < 600 ? 480 : 960;
}

function svg(tag, attributes = {}, text = "") {
  const made = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== "") made.textContent = text;
  return made;
}

export function shortNumber(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  return size < 1e-3 || size >= 1e5 ? value.toExponential(1).replace(".0e", "e") : String(Number(value.toPrecision(4)));
}

// A scale from values to positions; logarithmic for positive values that differ by a factor of `logRatio` or more.
export function makeScale(values, start, end, logRatio = Infinity) {
  const finite = values.filter((value) => Number.isFinite(value));
  let [low, high] = extent(finite);
  const isLog = low > 0 && high / low >= logRatio;
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const change = isLog ? Math.log10 : (value) => value;
  const [first, last] = [change(low), change(high)];
  const place = (value) => start + ((change(value) - first) / (last - first)) * (end - start);
  const invert = (position) => {
    const inside = first + ((position - start) / (end - start)) * (last - first);
    return isLog ? 10 ** inside : inside;
  };
  return { place, invert, low, high, isLog, ticks: isLog ? logTicks(low, high) : linearTicks(low, high) };
}

// Smallest and largest number; 0 and 1 without numbers.
export function extent(values) {
  let low = Infinity, high = -Infinity; // no spread: there may be too many values for arguments
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return values.length ? [low, high] : [0, 1];
}

function linearTicks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) ticks.push(Number(tick.toPrecision(10)));
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of high / low > 2000 ? [1] : [1, 3]) {
      const tick = factor * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

function figure(title, { legend = [], isWide = true, note = "" } = {}) {
  const made = document.createElement("figure");
  made.className = `card plot${isWide ? " wide" : ""}`;
  const caption = document.createElement("figcaption"), heading = document.createElement("h4");
  heading.textContent = title;
  caption.append(heading);
  if (legend.length) {
    const list = document.createElement("ul");
    list.className = "legend";
    for (const entry of legend) {
      const item = document.createElement("li"), swatch = svg("svg", { class: `swatch ${entry.class}`, viewBox: "0 0 22 10", "aria-hidden": "true" });
      swatch.append(svg("line", { x1: 0, x2: 22, y1: 5, y2: 5 }));
      item.append(swatch, entry.name);
      list.append(item);
    }
    caption.append(list);
  }
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  made.append(caption, scroll);
  if (note) {
    const text = document.createElement("p");
    text.className = "note";
    text.textContent = note;
    made.append(text);
  }
  return [made, scroll];
}

function frame(width, height, label, x, y, [left, right, top, bottom], xLabel) {
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of y.ticks) {
    const at = y.place(tick);
    chart.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: at, y2: at }));
    chart.append(svg("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, shortNumber(tick)));
  }
  for (const tick of x.ticks) {
    chart.append(svg("text", { x: x.place(tick), y: height - bottom + 17, "text-anchor": "middle" }, shortNumber(tick)));
  }
  chart.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  chart.append(svg("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, xLabel));
  return chart;
}

function showTip(event, title, rows = []) {
  tip.replaceChildren(title);
  for (const [colorClass, text] of rows) {
    const row = document.createElement("div"), dot = document.createElement("i");
    row.className = colorClass;
    row.append(dot, text);
    tip.append(row);
  }
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const isRight = event.clientX + 16 + box.width < innerWidth;
  tip.style.left = `${Math.max(4, isRight ? event.clientX + 16 : event.clientX - 16 - box.width)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 12, innerHeight - box.height - 4))}px`;
}

function hideTip() {
  tip.hidden = true;
}

// lines: {name, class, x, y, isSelected}; the first ones are drawn last, on top. Lines are cut at `yRange`.
export function lineChart(title, lines, { xLabel = "step", isWide = true, legend = lines, note = "", yRange = null } = {}) {
  const width = chartWidth(isWide), height = width > 480 ? 325 : 260, margins = [54, 16, 16, 42];
  const xs = lines.flatMap((line) => line.x), ys = yRange ?? lines.flatMap((line) => line.y);
  const x = makeScale(xs, margins[0], width - margins[1]);
  const y = makeScale(ys, height - margins[3], margins[2], title.includes("loss") ? LOSS_RATIO : Infinity);
  const ends = legend.map((line) => `${line.name} ends at ${shortNumber(line.y.at(-1) ?? NaN)}`).join("; ");
  const [made, scroll] = figure(y.isLog ? `${title} (logarithmic)` : title, { legend, isWide, note });
  const chart = frame(width, height, `${title}: ${ends}`, x, y, margins, xLabel);
  const inner = svg("svg", { x: 0, y: margins[2] - 2, width, height: height - margins[2] - margins[3] + 4, viewBox: `0 ${margins[2] - 2} ${width} ${height - margins[2] - margins[3] + 4}` }); // hides what is outside
  chart.append(inner);
  for (const line of [...lines].reverse()) {
    const parts = [];
    let isOpen = false;
    line.y.forEach((value, i) => {
      if (value === null || (y.isLog && value <= 0)) return (isOpen = false);
      parts.push(`${isOpen ? "L" : "M"}${x.place(line.x[i]).toFixed(1)} ${y.place(value).toFixed(1)}`);
      isOpen = true;
    });
    if (line.y.length === 1 && parts.length) parts.push("h3");
    const path = svg("path", { class: `line ${line.class}${line.isSelected ? " selected" : ""}`, d: parts.join("") });
    inner.append(path);
  }
  chart.addEventListener("pointermove", (event) => {
    const inside = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    const wanted = x.invert(inside.x);
    const rows = legend.slice(0, COLORS).filter((line) => line.x.length).map((line) => {
      const place = line.x.reduce((best, at, i) => (Math.abs(at - wanted) < Math.abs(line.x[best] - wanted) ? i : best), 0);
      return [line.class, `${line.name}: ${line.y[place] === null ? "not finite" : formatted(line.y[place])}`];
    });
    if (rows.length) showTip(event, `${xLabel} ${Math.round(wanted)}`, rows);
  });
  chart.addEventListener("pointerleave", hideTip);
  scroll.append(chart);
  return made;
}

function formatted(value) {
  return String(Number(value.toPrecision(5)));
}

// points: {x, y, class, name, id, isSelected}; x and y are numbers or texts.
export function scatterChart(points, [xTitle, isXSetting], [yTitle, isYSetting], onPick) {
  const width = chartWidth(true), height = width > 480 ? 380 : 320, margins = [70, 20, 16, 42];
  const x = axisOf(points.map((point) => point.x), margins[0] + 14, width - margins[1] - 14, isXSetting);
  const y = axisOf(points.map((point) => point.y), height - margins[3] - 12, margins[2] + 8, isYSetting);
  const [made, scroll] = figure(`${yTitle} over ${xTitle}`);
  const chart = frame(width, height, `${yTitle} over ${xTitle}: ${points.length} runs`, x, y, margins, xTitle);
  labelTexts(chart, x, (at, text) => svg("text", { x: at, y: height - margins[3] + 17, "text-anchor": "middle" }, text));
  labelTexts(chart, y, (at, text) => svg("text", { x: margins[0] - 8, y: at + 4, "text-anchor": "end" }, text));
  for (const point of [...points].reverse()) {
    const dot = svg("circle", { class: `dot ${point.class}${point.isSelected ? " selected" : ""}`, cx: x.place(point.x), cy: y.place(point.y), r: 5 });
    dot.addEventListener("pointerenter", (event) => showTip(event, point.name, [[point.class, `${xTitle}: ${say(point.x)}`], [point.class, `${yTitle}: ${say(point.y)}`]]));
    dot.addEventListener("pointerleave", hideTip);
    dot.addEventListener("click", () => onPick(point.id));
    chart.append(dot);
  }
  scroll.append(chart);
  return made;
}

function say(value) {
  return typeof value === "number" ? formatted(value) : value;
}

function axisOf(values, start, end, isSetting = false) {
  if (values.every((value) => typeof value === "number")) return makeScale(values, start, end, isSetting ? SETTING_RATIO : Infinity);
  const texts = [...new Set(values.map(String))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const place = (value) => (texts.length === 1 ? (start + end) / 2 : start + (texts.indexOf(String(value)) / (texts.length - 1)) * (end - start));
  return { place, texts, ticks: [] };
}

function labelTexts(chart, scale, make) {
  const every = Math.ceil((scale.texts?.length ?? 0) / 12);
  scale.texts?.forEach((text, i) => {
    if (i % every === 0) chart.append(make(scale.place(text), text.length > 14 ? `${text.slice(0, 13)}…` : text));
  });
}

// axes: {name, title}; rows: {values, class, name, isOut, isSelected}; onBrush(axis, [low, high] | [texts] | null).
export function parallelChart(title, axes, rows, brushes, onBrush, onPick, note = "") {
  const width = chartWidth(true, axes.length > 4), height = 345, top = 46, bottom = height - 22, left = 70, right = 70;
  const [made, scroll] = figure(title, { note });
  const chart = svg("svg", { class: `chart parallel${axes.length > 4 ? " dense" : ""}`, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${rows.length} runs` });
  const at = (i) => (axes.length === 1 ? width / 2 : left + (i / (axes.length - 1)) * (width - left - right));
  const scales = axes.map((axis, i) => axisOf(rows.map((row) => row.values[i]).filter((value) => value !== null), bottom, top, axis.kind === "key"));
  for (const row of [...rows].reverse()) {
    let isOpen = false;
    const parts = row.values.map((value, i) => {
      if (value === null) return ((isOpen = false), "");
      const part = `${isOpen ? "L" : "M"}${at(i).toFixed(1)} ${scales[i].place(value).toFixed(1)}`;
      isOpen = true;
      return part;
    });
    const path = svg("path", { class: `line ${row.class}${row.isOut ? " out" : ""}${row.isSelected ? " selected" : ""}`, d: parts.join("") });
    path.append(svg("title", {}, row.name));
    path.addEventListener("click", () => onPick(row.id));
    chart.append(path);
  }
  axes.forEach((axis, i) => {
    const scale = scales[i], x = at(i);
    const anchor = i === 0 ? "start" : i === axes.length - 1 ? "end" : "middle";
    const labelX = i === 0 ? 4 : i === axes.length - 1 ? width - 4 : x;
    chart.append(svg("text", { class: "title", x: labelX, y: i % 2 && axes.length > 7 ? 34 : 18, "text-anchor": anchor }, axis.title.length > 22 ? `${axis.title.slice(0, 21)}…` : axis.title));
    chart.append(svg("line", { class: "axis", x1: x, x2: x, y1: top, y2: bottom }));
    for (const tick of scale.ticks) chart.append(svg("text", { x: x - 7, y: scale.place(tick) + 4, "text-anchor": "end" }, shortNumber(tick)));
    labelTexts(chart, scale, (y, text) => svg("text", { x: x - 7, y: y + 4, "text-anchor": "end" }, text));
    brushable(chart, scale, x, top, bottom, brushes[axis.name], (range) => onBrush(axis.name, range));
  });
  scroll.append(chart);
  return made;
}

function brushable(chart, scale, x, top, bottom, current, onBrush) {
  const rect = svg("rect", { class: "brush", x: x - 9, width: 18, y: top, height: 0 });
  const handle = svg("rect", { class: "handle", x: x - 16, width: 32, y: top - 10, height: bottom - top + 20 });
  const show = (a, b) => {
    rect.setAttribute("y", Math.min(a, b));
    rect.setAttribute("height", Math.max(3, Math.abs(a - b)));
  };
  if (current?.range && !scale.texts) show(...current.range.map((value) => scale.place(clamp(value, scale.low, scale.high)))); // an open end is infinite
  else if (current?.texts) {
    const places = current.texts.filter((text) => scale.texts?.includes(text)).map((text) => scale.place(text));
    if (places.length) show(Math.min(...places) - 8, Math.max(...places) + 8);
  } else rect.setAttribute("visibility", "hidden");
  chart.append(rect, handle);
  const height = (event) => clamp(new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse()).y, top - 8, bottom + 8);
  let from = null;
  handle.addEventListener("pointerdown", (event) => {
    from = height(event);
    handle.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  handle.addEventListener("pointermove", (event) => {
    if (from === null) return;
    rect.setAttribute("visibility", "visible");
    show(from, height(event));
  });
  handle.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const [a, b] = [from, height(event)].sort((one, other) => one - other);
    from = null;
    if (b - a < 4) return onBrush(null);
    if (scale.texts) return onBrush({ texts: scale.texts.filter((text) => scale.place(text) >= a - 6 && scale.place(text) <= b + 6) });
    onBrush({ range: [scale.invert(clamp(b, top, bottom)), scale.invert(clamp(a, top, bottom))] });
  });
  handle.addEventListener("pointercancel", () => (from = null));
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}
