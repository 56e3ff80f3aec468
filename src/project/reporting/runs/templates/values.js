// Values of runs as text, numbers and elements.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// The value of a row in a column: a number, a string, or null.
export function valueOf(row, name) {
  if (name === "name") return row.name;
  if (name === "state") return row.state;
  if (name === "epoch") return row.epoch;
  if (name === "started") return row.started || null;
  if (name === "tags") return row.tags.join(", ") || null;
  if (name === "time") return timeOf(row);
  return row.cells[name] ?? null;
}

function timeOf(row) {
  if (row.time !== null || row.state !== "running" || !row.started) return row.time;
  return Math.max(0, (Date.now() - Date.parse(row.started)) / 1000);
}

// As the report writes them.
export function formatMetric(value) {
  if (typeof value !== "number") return String(value ?? "");
  if (Number.isInteger(value) && Math.abs(value) > 1) return value.toLocaleString("en");
  const size = Math.abs(value);
  return value === 0 || value === 1 || (size >= 0.001 && size < 1000) ? value.toFixed(4) : String(Number(value.toPrecision(4)));
}

export function formatDuration(seconds) {
  if (seconds === null) return "";
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  if (minutes) return `${minutes} min ${whole % 60} s`;
  return seconds < 9.95 ? `${seconds.toFixed(1)} s` : `${whole} s`;
}

function formatTime(text) {
  const time = new Date(text);
  return Number.isNaN(time.valueOf()) ? "" : `${time.toISOString().slice(0, 16).replace("T", " ")} UTC`;
}

export function formatValue(row, column) {
  const value = valueOf(row, column.name);
  if (value === null) return "";
  if (column.name === "time") return formatDuration(value);
  if (column.name === "started") return formatTime(value);
  if (column.name === "epoch") return row.epochs ? `${value}/${row.epochs}` : String(value);
  if (column.kind === "metric") return formatMetric(value);
  return typeof value === "number" ? String(Number(value.toPrecision(6))) : value;
}

export function badge(state) {
  return element("span", { class: `badge ${state}` }, state);
}

export function isNumeric(rows, name) {
  let found = false;
  for (const row of rows) {
    const value = valueOf(row, name);
    if (value === null) continue;
    if (typeof value !== "number") return false;
    found = true;
  }
  return found;
}

export function compareValues(a, b, isDown) {
  if (a === null || b === null) return (a === null) - (b === null); // what has no value stays last
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return isDown ? -order : order;
}

export function sortRows(rows, sort) {
  if (!sort) return rows;
  const isDown = sort.startsWith("-"), name = sort.replace(/^-/, "");
  return rows
    .map((row) => [valueOf(row, name), row])
    .sort(([a], [b]) => compareValues(a, b, isDown))
    .map(([, row]) => row);
}

// Finished runs with equal values of some keys; mean ± sample standard deviation (n) of each metric.
export function groupRows(rows, keys, metrics) {
  const groups = new Map();
  for (const row of rows) {
    if (row.state !== "done") continue;
    const id = JSON.stringify(keys.map((key) => valueOf(row, key)));
    if (!groups.has(id)) groups.set(id, []);
    groups.get(id).push(row);
  }
  return [...groups.values()].map((members) => {
    const scores = {};
    for (const metric of metrics) scores[metric] = scoreOf(members.map((row) => row.cells[metric]).filter((value) => typeof value === "number"));
    return { first: members[0], count: members.length, scores };
  });
}

function scoreOf(values) {
  if (!values.length) return null;
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, std: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : null, n: values.length };
}

export function formatScore(score) {
  if (!score) return "";
  const spread = score.std === null ? "" : ` ± ${formatMetric(score.std)}`;
  return `${formatMetric(score.mean)}${spread} (${score.n})`;
}

// Options of a select: values and titles.
export function fill(select, entries, chosen) {
  const text = JSON.stringify([entries, chosen]);
  if (select.dataset.text === text) return;
  select.dataset.text = text;
  select.replaceChildren(...entries.map(([value, title]) => element("option", { value, selected: value === chosen }, title)));
  select.value = chosen;
}
