// Parallel coordinates and scatter: how keys and metrics of runs go together.
import { byId, choose, columnOf, keyColumns, metricColumns, rankedRows, rows, setFilter, state, view } from "./state.js";
import { COLORS, colorOf, parallelChart, scatterChart } from "./svg_charts.js";
import { element, fill, isNumeric, valueOf } from "./values.js";

const MAX_LINES = 600, MAX_AXES = 9;
const CONDITION = /^([^=<>~!]+?)\s*(!=|<=|>=|=|<|>|~)\s*([^]*)$/;

// ---- Parallel coordinates; brushes are conditions of the filter.

export function showParallel() {
  const place = byId("parallel-chart"), { ids, match, monitor } = state;
  const keys = keyColumns().filter((column) => column.name !== "seed").slice(0, MAX_AXES - 1);
  const axes = [...keys, ...state.columns.filter((column) => column.name === monitor)];
  const all = ids.map((id) => rows.get(id)).filter((row) => row && row.state !== "waiting");
  if (!keys.length || all.length < 2) return place.replaceChildren(element("p", { class: "empty" }, "Needs at least two runs that differ in a key."));
  const order = new Map(rankedRows().map((row, i) => [row.id, i]));
  const lines = all
    .map((row) => ({ id: row.id, name: row.name, values: axes.map((axis) => valueOf(row, axis.name)), isOut: Boolean(match) && !match.has(row.id), isSelected: row.key === view.run, class: colorOf(order.get(row.id) ?? COLORS), order: order.get(row.id) ?? Infinity }))
    .sort((a, b) => a.order - b.order)
    .slice(0, MAX_LINES);
  const note = all.length > lines.length ? `Drawn: ${lines.length} of ${all.length} runs.` : "";
  place.replaceChildren(parallelChart(`Keys and ${monitor}`, axes, lines, brushes(), brush, (id) => choose(rows.get(id)), note));
}

const words = () => view.filter.match(/(?:[^\s"']+|"[^"]*"|'[^']*')+/g) ?? [];
const unquoted = (word) => word.replace(/["']/g, "");

function brushes() {
  const found = {};
  for (const word of words()) {
    const [, name, operator, value] = CONDITION.exec(unquoted(word)) ?? [];
    const column = state.columns.find((one) => one.name === name || one.title === name);
    if (!column) continue;
    const entry = (found[column.name] ??= {});
    if (operator === "=") entry.texts = value.split(",");
    if (operator === ">=" || operator === ">") entry.range = [Number(value), entry.range?.[1] ?? Infinity];
    if (operator === "<=" || operator === "<") entry.range = [entry.range?.[0] ?? -Infinity, Number(value)];
  }
  return found;
}

function brush(name, chosen) {
  const column = columnOf(name);
  const kept = words().filter((word) => {
    const [, own, operator] = CONDITION.exec(unquoted(word)) ?? [];
    return ![column.name, column.title].includes(own) || operator === "!=" || operator === "~";
  });
  const numbers = [...rows.values()].map((row) => valueOf(row, name)).filter((value) => typeof value === "number");
  if (chosen?.texts?.length) {
    const condition = `${column.title}=${chosen.texts.map((text) => text.replace(/["',[\]]/g, "?")).join(",")}`;
    kept.push(/\s/.test(condition) ? `"${condition}"` : condition);
  }
  if (chosen?.range) {
    const [low, high] = chosen.range.map((value) => Number(value.toPrecision(4)));
    if (numbers.some((value) => value < low)) kept.push(`${column.title}>=${low}`);
    if (numbers.some((value) => value > high)) kept.push(`${column.title}<=${high}`);
  }
  setFilter(kept.join(" "));
}

// ---- Scatter.

export function showScatter() {
  const place = byId("scatter-chart"), x = xAxis(), y = yAxis();
  const points = rankedRows()
    .map((row, i) => ({ id: row.id, name: row.name, x: valueOf(row, x), y: valueOf(row, y), class: colorOf(i), isSelected: row.key === view.run }))
    .filter((point) => point.x !== null && point.y !== null);
  if (!points.length) return place.replaceChildren(element("p", { class: "empty" }, "No run has values of both columns."));
  const axis = (name) => [columnOf(name)?.title ?? name, columnOf(name)?.kind === "key"];
  place.replaceChildren(scatterChart(points, axis(x), axis(y), (id) => choose(rows.get(id))));
}

function xAxis() {
  const keys = keyColumns().map((column) => column.name).filter((name) => name !== "seed");
  return columnOf(view.x) ? view.x : keys.find((name) => isNumeric(rows.values(), name)) ?? keys[0] ?? "time";
}

const yAxis = () => (columnOf(view.y) ? view.y : columnOf(state.monitor) ? state.monitor : metricColumns()[0]?.name ?? "time");

// Choices of both axes.
export function fillAxes() {
  const names = [...keyColumns(), ...metricColumns()].map((column) => [column.name, column.title]);
  const axes = [...names, ["time", "time"], ["epoch", "epoch"], ["started", "started"]];
  fill(byId("x"), axes, xAxis());
  fill(byId("y"), axes, yAxis());
}
