// What the page knows: the runs, the columns of their table, and the view, which the address keeps.
import { compareValues, valueOf } from "./values.js";

const VIEW = ["filter", "sort", "group", "metric", "x", "y", "run"];
export const isEditable = document.body.dataset.editable === "true";
export const rows = new Map(); // by id
export const state = { columns: [], ids: [], match: null, monitor: "", isLarger: true, summary: { states: {}, is_active: true } };
export const view = readView();

export const byId = (id) => document.getElementById(id);

export function readView() {
  const query = new URLSearchParams(location.search);
  return Object.fromEntries(VIEW.map((name) => [name, query.get(name) ?? ""]));
}

export function setView(changes) {
  Object.assign(view, changes);
  const query = new URLSearchParams(VIEW.filter((name) => view[name]).map((name) => [name, view[name]]));
  const text = query.toString();
  history.replaceState(null, "", `${location.pathname}${text ? `?${text}` : ""}${location.hash}`);
}

// Parts of the page that change the view call these; runs.js listens and draws the others.
export function choose(row) {
  setView({ run: view.run === row.key ? "" : row.key });
  document.dispatchEvent(new Event("run-chosen"));
}

export function setFilter(text) {
  setView({ filter: text });
  byId("filter").value = text;
  askServer();
}

export function askServer() {
  document.dispatchEvent(new Event("ask-server"));
}

// Draw parts of the page one by one, with a frame between them, so that the first is seen before the last is drawn.
const parts = new Map(); // functions by name
export function drawLater(name, draw) {
  parts.set(name, draw);
  if (parts.size === 1) waitForFrame();
}

function waitForFrame() {
  requestAnimationFrame(() => setTimeout(drawNext));
}

function drawNext() {
  const [name, draw] = parts.entries().next().value;
  parts.delete(name);
  if (parts.size) waitForFrame();
  draw();
}

export const shownRows = () => state.ids.map((id) => rows.get(id)).filter((row) => row && (!state.match || state.match.has(row.id)));
export const selectedRow = () => (view.run ? [...rows.values()].find((row) => row.key === view.run) : undefined);
export const columnOf = (name) => state.columns.find((column) => column.name === name);
export const keyColumns = () => state.columns.filter((column) => column.kind === "key");
export const metricColumns = () => state.columns.filter((column) => column.kind === "metric");

// Shown rows, the best value of the monitored metric first.
export function rankedRows() {
  const score = (row) => (row.state === "waiting" ? null : valueOf(row, state.monitor));
  return shownRows()
    .map((row) => [score(row), row])
    .sort(([a], [b]) => compareValues(a, b, state.isLarger))
    .map(([, row]) => row);
}
