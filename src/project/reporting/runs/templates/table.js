// Table of runs, or of groups of runs with mean and standard deviation.
import { byId, choose, columnOf, drawLater, isEditable, keyColumns, metricColumns, rows, setView, shownRows, state, view } from "./state.js";
import { setText } from "./summary.js";
import { badge, compareValues, element, formatDuration, formatScore, formatValue, groupRows, isNumeric, sortRows, valueOf } from "./values.js";

const MAX_ROWS = 2000, ROWS_AT_ONCE = 150, MAX_CELL = 40;
const table = byId("table");
const lines = new Map(); // table rows by id
let usedNames = "";

export function forgetLines() {
  lines.clear();
}

// Draw what is new; rows in `changed` are drawn again and highlighted.
export function showTable(changed = new Set()) {
  for (const id of changed) lines.delete(id);
  if (view.group) return showGroups(shownRows());
  const sorted = sortRows(shownRows(), view.sort || (isEditable ? "-started" : "")), shown = sorted.slice(0, MAX_ROWS);
  const metrics = metricColumns(), isPartial = sorted.some((row) => row.state !== "done" && metrics.some(({ name }) => name in row.cells));
  const notes = [sorted.length > MAX_ROWS ? `The first ${MAX_ROWS} are shown.` : "", isPartial ? "Values in italics are the latest of runs that are not done." : ""];
  setText(byId("count"), `${sorted.length} of ${state.ids.length} ${state.ids.length === 1 ? "run" : "runs"}. ${notes.filter(Boolean).join(" ")}`);
  const used = usedColumns();
  showHead(used.map((column) => [column.name, column.title]), ({ name }) => isNumeric(rows.values(), name) || ["time", "epoch"].includes(name));
  const body = [];
  let numNew = 0;
  for (const row of shown) {
    if (!lines.has(row.id)) {
      if (++numNew > ROWS_AT_ONCE) break;
      lines.set(row.id, drawRow(row, used, changed.has(row.id)));
    }
    const line = lines.get(row.id);
    line.classList.toggle("selected", row.key === view.run);
    line.classList.toggle("best", row.id === state.summary.best);
    body.push(line);
  }
  arrange(body);
  showTimes();
  if (body.length < shown.length) drawLater("table", () => showTable());
}

function usedColumns() {
  const isUsed = ({ kind, name }) => kind !== "fact" || !["tags", "epoch"].includes(name) || [...rows.values()].some((row) => valueOf(row, name) !== null);
  const used = state.columns.filter(isUsed), names = used.map((column) => column.name).join("\n");
  if (names !== usedNames) lines.clear();
  usedNames = names;
  return used;
}

// Put rows in order; move only what is out of place, so that the focus and the scroll position stay.
function arrange(wanted) {
  const body = table.tBodies[0], kept = new Set(wanted);
  for (const line of [...body.children]) if (!kept.has(line)) line.remove();
  let next = body.firstElementChild;
  for (const line of wanted) {
    if (line === next) next = next.nextElementSibling;
    else body.insertBefore(line, next);
  }
}

// entries: names and titles of columns.
function showHead(entries, isNumber) {
  const head = table.tHead.rows[0], text = JSON.stringify([entries, view.sort, view.group]);
  if (head.dataset.text === text) return;
  head.dataset.text = text;
  const focused = document.activeElement?.closest?.("th[data-name]")?.dataset.name;
  head.replaceChildren(...entries.map(([name, title], place) => headCell(name, title, isNumber({ name, place }))));
  if (focused) [...head.cells].find((cell) => cell.dataset.name === focused)?.focus();
}

function headCell(name, title, isNumber) {
  const order = view.sort === name ? "ascending" : view.sort === `-${name}` ? "descending" : null;
  const sort = () => {
    setView({ sort: view.sort === `-${name}` ? name : view.sort === name || isNumber ? `-${name}` : name });
    showTable();
  };
  const cell = element("th", { scope: "col", tabindex: 0, title: name, "data-name": name, class: isNumber ? "number" : null, "aria-sort": order, onclick: sort }, title);
  cell.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    sort();
  });
  return cell;
}

function drawRow(row, used, isChanged) {
  return element("tr", { "data-id": row.id, class: isChanged ? "changed" : null }, ...used.map((column) => drawCell(row, column)));
}

function drawCell(row, column) {
  if (column.name === "name") return element("th", { scope: "row" }, element("button", { class: "name", type: "button", title: row.key, onclick: () => choose(row) }, row.name));
  if (column.name === "state") return element("td", {}, badge(row.state));
  if (column.name === "tags") return element("td", {}, ...row.tags.map((tag) => element("span", { class: "tag" }, tag)));
  const isNumber = typeof valueOf(row, column.name) === "number" || ["time", "epoch"].includes(column.name);
  const isLatest = column.kind === "metric" && row.state !== "done";
  const classes = [isNumber && "number", isLatest && "latest"].filter(Boolean).join(" ");
  const text = formatValue(row, column), isLong = text.length > MAX_CELL;
  return element("td", { class: classes || null, "data-column": column.name === "time" ? "time" : null, title: isLong ? text : null }, isLong ? `${text.slice(0, MAX_CELL - 1)}…` : text);
}

// Durations of running runs, which change without an answer of the server.
export function showTimes() {
  if (view.group) return;
  for (const row of rows.values()) {
    const cell = row.state === "running" && lines.get(row.id)?.querySelector('[data-column="time"]');
    if (cell) cell.textContent = formatDuration(valueOf(row, "time"));
  }
}

function groupKeys() {
  const keys = keyColumns().map((column) => column.name);
  return view.group === "-seed" ? keys.filter((key) => key !== "seed" && key !== "data.fold") : [view.group];
}

function showGroups(all) {
  const keys = groupKeys(), metrics = metricColumns();
  const groups = groupRows(all, keys, metrics.map((column) => column.name));
  const name = view.sort.replace(/^-/, "") || state.monitor, isDown = view.sort ? view.sort.startsWith("-") : state.isLarger;
  const value = (group) => (name === "n" ? group.count : keys.includes(name) ? valueOf(group.first, name) : group.scores[name]?.mean ?? null);
  groups.sort((a, b) => compareValues(value(a), value(b), isDown));
  const total = groups.reduce((sum, group) => sum + group.count, 0);
  setText(byId("count"), `${groups.length} ${groups.length === 1 ? "group" : "groups"} of ${total} finished runs: mean ± sample standard deviation (n). Other runs are left out.`);
  lines.clear();
  showHead([...keys.map((key) => [key, columnOf(key)?.title ?? key]), ["n", "n"], ...metrics.map((column) => [column.name, column.title])], ({ place }) => place >= keys.length);
  table.tBodies[0].replaceChildren(
    ...groups.map((group) => {
      const heads = keys.map((key, place) => element(place ? "td" : "th", place ? {} : { scope: "row" }, formatValue(group.first, columnOf(key) ?? { name: key, kind: "key" }) || "–"));
      return element("tr", {}, ...heads, element("td", { class: "number" }, String(group.count)), ...metrics.map((metric) => element("td", { class: "number" }, formatScore(group.scores[metric.name]))));
    }),
  );
}
