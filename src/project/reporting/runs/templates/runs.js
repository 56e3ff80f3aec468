// Page of a running sweep or of a list of runs: asks the server for what changed, and shows it.
import { COLORS, lineChart, parallelChart, scatterChart } from "./charts.js";
import { badge, compareValues, element, formatDuration, formatMetric, formatScore, formatValue, groupRows, isNumeric, sortRows, valueOf } from "./table.js";

const ACTIVE_MS = 2000, IDLE_MS = 10000;
const MAX_ROWS = 2000, MAX_LINES = 300, MAX_AXES = 9;
const CONDITION = /^([^=<>~!]+?)\s*(!=|<=|>=|=|<|>|~)\s*([^]*)$/;
const TITLES = { loss: "Loss", acc: "Accuracy", lr: "Learning rate", grad_norm: "Gradient norm", images_per_s: "Throughput, images per second", data_wait_fraction: "Fraction of time waiting for data", memory_gb: "GPU memory, GB" };
const VIEW = ["filter", "sort", "group", "metric", "x", "y", "run"];
const byId = (id) => document.getElementById(id);
const isEditable = document.body.dataset.editable === "true";

const rows = new Map(); // by id
const drawn = new Map(); // table rows by id
const curves = new Map(); // by id and metric
let view = readView();
let server = "", version = 0, curveVersion = 0;
let columns = [], ids = [], match = null, monitor = "", isLarger = true;
let summary = { states: {}, is_active: true };
let curveNames = [], curveRequest = "";
let log = { run: null, next: -1 };
let timer = 0, isPolling = false, isPollDue = false;

// ---- The view, which the address keeps.

function readView() {
  const query = new URLSearchParams(location.search);
  return Object.fromEntries(VIEW.map((name) => [name, query.get(name) ?? ""]));
}

function setView(changes) {
  Object.assign(view, changes);
  const query = new URLSearchParams(VIEW.filter((name) => view[name]).map((name) => [name, view[name]]));
  const text = query.toString();
  history.replaceState(null, "", `${location.pathname}${text ? `?${text}` : ""}${location.hash}`);
}

// ---- Requests.

async function poll() {
  if (isPolling) return (isPollDue = true);
  clearTimeout(timer);
  if (document.hidden) return;
  isPolling = true;
  try {
    const query = new URLSearchParams({ since: version, server, filter: view.filter });
    const answer = await fetch(`state?${query}`);
    if (!answer.ok) throw new Error(answer.status === 401 ? "open the address with its token again" : `status ${answer.status}`);
    update(await answer.json());
    await readCurves();
    await readLog();
    say("");
  } catch (error) {
    const reason = error instanceof TypeError ? "it was ended, or the connection is lost" : error.message;
    say(`The server of this page does not answer (${reason}). The page shows the last state and tries again.`);
    if (!(error instanceof TypeError)) console.warn(error);
  }
  isPolling = false;
  timer = setTimeout(poll, isPollDue ? 0 : summary.is_active ? ACTIVE_MS : IDLE_MS);
  isPollDue = false;
}

function say(text) {
  const place = byId("connection");
  if (place.textContent !== text) place.textContent = text;
  place.hidden = !text;
}

function update(answer) {
  if (answer.full) {
    rows.clear();
    forget();
  }
  server = answer.server;
  const isNew = answer.rows !== undefined, isFirst = !columns.length;
  const hadMatch = JSON.stringify(match);
  const changed = new Set((answer.rows ?? []).map((row) => row.id));
  if (isNew) {
    if (JSON.stringify(columns) !== JSON.stringify(answer.columns)) {
      columns = answer.columns;
      drawn.clear();
    }
    for (const row of answer.rows) rows.set(row.id, row);
    ({ ids, monitor, larger_is_better: isLarger } = answer);
    const known = new Set(ids);
    for (const id of [...rows.keys()]) if (!known.has(id)) rows.delete(id);
    fillChoices();
  }
  version = answer.version;
  if (!answer.filter_error) match = answer.match && new Set(answer.match);
  const isMatchNew = hadMatch !== JSON.stringify(match) || isFirst;
  byId("filter-error").hidden = !answer.filter_error;
  byId("filter-error").textContent = answer.filter_error;
  summary = answer.summary;
  showSummary();
  if (isNew || isMatchNew || lastMatch !== answer.match?.join()) {
    lastMatch = answer.match?.join();
    showTable(isFirst ? new Set() : changed);
    showParallel();
    showScatter();
    if (isNew) {
      showErrors();
      showDetails();
    }
  } else showTimes();
}
let lastMatch;

function forget() {
  version = curveVersion = 0;
  drawn.clear();
  curves.clear();
  curveRequest = "";
}

async function readCurves() {
  const shown = ranked().slice(0, MAX_LINES);
  const metrics = curveMetrics(shown);
  const wanted = `${shown.map((row) => row.id)}|${metrics}`;
  const isSame = wanted === curveRequest;
  if (isSame && !summary.is_active && curveVersion) return;
  if (!isSame) curveVersion = 0;
  curveRequest = wanted;
  const query = new URLSearchParams([["runs", shown.map((row) => row.id).join(",")], ["since", curveVersion], ...metrics.map((name) => ["metric", name])]);
  const answer = await (await fetch(`curves?${query}`)).json();
  curveVersion = answer.version;
  for (const curve of answer.curves) curves.set(`${curve.run} ${curve.metric}`, curve);
  const isNewNames = JSON.stringify(answer.names) !== JSON.stringify(curveNames);
  if (isNewNames) {
    curveNames = answer.names;
    fill(byId("metric"), [...(shown.length === 1 ? [["", "all"]] : []), ...curveNames.map((name) => [name, name])], chosenMetric(shown));
    if (curveMetrics(shown).join() !== metrics.join()) return readCurves();
  }
  if (!isSame || isNewNames || answer.curves.length) showCurves();
}

async function readLog() {
  const row = selected();
  if (!row || row.state === "waiting") return;
  if (log.run === row.id && log.next >= 0 && row.state !== "running" && log.isLast) return;
  const isSame = log.run === row.id;
  const answer = await (await fetch(`log?run=${row.id}&from=${isSame ? log.next : -1}`)).json();
  const place = byId("log");
  if (!place || answer.error || selected()?.id !== row.id) return;
  const isAtEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 40 || !isSame;
  if (answer.is_new || !isSame) place.textContent = answer.text;
  else if (answer.text) place.append(answer.text);
  if (place.textContent.length > 400000) place.textContent = place.textContent.slice(-300000);
  if (isAtEnd) place.scrollTop = place.scrollHeight;
  if (!place.textContent) place.textContent = "no lines yet";
  log = { run: row.id, next: answer.next, isLast: row.state !== "running" };
}

// ---- Rows.

const shownRows = () => ids.map((id) => rows.get(id)).filter((row) => row && (!match || match.has(row.id)));
const selected = () => (view.run ? [...rows.values()].find((row) => row.key === view.run) : undefined);
const keysOf = () => columns.filter((column) => column.kind === "key");
const metricsOf = () => columns.filter((column) => column.kind === "metric");

// Shown rows, the best value of the monitored metric first.
function ranked() {
  const wanted = (row) => (row.state === "waiting" ? null : valueOf(row, monitor));
  return shownRows()
    .map((row) => [wanted(row), row])
    .sort(([a], [b]) => compareValues(a, b, isLarger))
    .map(([, row]) => row);
}

const colorOf = (place) => (place < COLORS ? `c${place}` : "faint");

// ---- Head of the page.

function showSummary() {
  byId("states").replaceChildren(...Object.entries(summary.states).flatMap(([state, count]) => [element("span", { class: `badge ${state}` }, `${count} ${state}`), " "]));
  const isWatched = summary.is_active;
  byId("progress").hidden = !isWatched;
  byId("progress").firstElementChild.value = summary.fraction;
  const ended = ["done", "pruned", "failed"].reduce((sum, state) => sum + (summary.states[state] ?? 0), 0);
  const left = summary.left ? `, about ${summary.left} left` : "";
  const text = summary.count === 1 ? `${Math.round(100 * summary.fraction)} %${left}` : `${ended} of ${summary.count} jobs ended${left}`;
  byId("progress").lastElementChild.textContent = text;
  byId("end").hidden = !summary.end;
  if (byId("end").textContent !== summary.end) byId("end").textContent = summary.end;
  const best = rows.get(summary.best);
  byId("best").hidden = !best || summary.count === 1;
  if (best) byId("best").replaceChildren(element("button", { class: "name", type: "button", onclick: () => choose(best) }, "Best run"), `: ${summary.best_line}`);
  document.title = document.title.replace(/^(\d+ % · )?/, isWatched ? `${Math.round(100 * summary.fraction)} % · ` : "");
}

// ---- Table.

const table = byId("table");

function showTable(changed) {
  const all = shownRows();
  if (view.group) return showGroups(all);
  const sorted = sortRows(all, view.sort || (isWatch() ? "" : "-started"));
  const isPartial = sorted.some((row) => row.state !== "done" && Object.keys(row.cells).some((name) => metricsOf().some((column) => column.name === name)));
  const notes = [sorted.length > MAX_ROWS ? `The first ${MAX_ROWS} are shown.` : "", isPartial ? "Values in italics are the latest of runs that are not done." : ""];
  count(`${sorted.length} of ${ids.length} ${ids.length === 1 ? "run" : "runs"}. ${notes.filter(Boolean).join(" ")}`);
  const used = usedColumns();
  showHead(used.map((column) => [column.name, column.title]), used);
  const body = sorted.slice(0, MAX_ROWS).map((row) => {
    if (!drawn.has(row.id) || changed.has(row.id)) drawn.set(row.id, drawRow(row, used, changed.has(row.id)));
    const line = drawn.get(row.id);
    line.classList.toggle("selected", row.key === view.run);
    line.classList.toggle("best", row.id === summary.best);
    return line;
  });
  arrange(body);
  showTimes();
}

function count(text) {
  if (byId("count").textContent !== text) byId("count").textContent = text; // a screen reader repeats each change
}

const isWatch = () => !isEditable;

let usedNames = "";
function usedColumns() {
  const used = columns.filter((column) => column.kind !== "fact" || !["tags", "epoch"].includes(column.name) || [...rows.values()].some((row) => valueOf(row, column.name) !== null));
  const names = used.map((column) => column.name).join("\n");
  if (names !== usedNames) drawn.clear();
  usedNames = names;
  return used;
}

// Put rows in order; move only what is out of place, so that the focus stays.
function arrange(lines) {
  const body = table.tBodies[0];
  if (!body.contains(document.activeElement)) return body.replaceChildren(...lines);
  const wanted = new Set(lines);
  for (const line of [...body.children]) if (!wanted.has(line)) line.remove();
  let next = body.firstElementChild;
  for (const line of lines) {
    if (line === next) next = next.nextElementSibling;
    else body.insertBefore(line, next);
  }
}

function showHead(entries, used = []) {
  const head = table.tHead.rows[0];
  const text = JSON.stringify([entries, view.sort, view.group]);
  if (head.dataset.text === text) return;
  head.dataset.text = text;
  const focused = document.activeElement?.closest?.("th[data-name]")?.dataset.name;
  head.replaceChildren(
    ...entries.map(([name, title], place) => {
      const isNumber = view.group ? place > 0 && !title.startsWith("=") && used[place]?.kind !== "key" : isNumeric(rows.values(), name) || ["time", "epoch"].includes(name);
      const order = view.sort === name ? "ascending" : view.sort === `-${name}` ? "descending" : null;
      const sort = () => {
        setView({ sort: view.sort === `-${name}` ? name : view.sort === name || isNumber ? `-${name}` : name });
        showTable(new Set());
      };
      const cell = element("th", { scope: "col", tabindex: 0, title: name, "data-name": name, class: isNumber ? "number" : null, "aria-sort": order, onclick: sort }, title);
      cell.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          sort();
        }
      });
      return cell;
    }),
  );
  if (focused) [...head.cells].find((cell) => cell.dataset.name === focused)?.focus();
}

function drawRow(row, used, isChanged) {
  const line = element("tr", { "data-id": row.id, class: isChanged ? "changed" : null });
  for (const column of used) {
    if (column.name === "name") {
      line.append(element("th", { scope: "row" }, element("button", { class: "name", type: "button", title: row.key, onclick: () => choose(row) }, row.name)));
    } else if (column.name === "state") line.append(element("td", {}, badge(row.state)));
    else if (column.name === "tags") line.append(element("td", {}, ...row.tags.map((tag) => element("span", { class: "tag" }, tag))));
    else {
      const value = valueOf(row, column.name);
      const isLatest = column.kind === "metric" && row.state !== "done";
      const classes = [typeof value === "number" || ["time", "epoch"].includes(column.name) ? "number" : "", isLatest ? "latest" : ""].join(" ").trim();
      const text = formatValue(row, column);
      line.append(element("td", { class: classes || null, "data-column": column.name === "time" ? "time" : null, title: text.length > 40 ? text : null }, text.length > 40 ? `${text.slice(0, 39)}…` : text));
    }
  }
  return line;
}

function showTimes() {
  if (view.group) return;
  for (const row of rows.values()) {
    const cell = row.state === "running" && drawn.get(row.id)?.querySelector('[data-column="time"]');
    if (cell) cell.textContent = formatDuration(valueOf(row, "time"));
  }
}

function groupKeys() {
  const keys = keysOf().map((column) => column.name);
  return view.group === "-seed" ? keys.filter((key) => key !== "seed" && key !== "data.fold") : [view.group];
}

function showGroups(all) {
  const keys = groupKeys(), metrics = metricsOf();
  const titles = new Map(columns.map((column) => [column.name, column.title]));
  const groups = groupRows(all, keys, metrics.map((column) => column.name));
  const name = view.sort.replace(/^-/, "") || monitor, isDown = view.sort ? view.sort.startsWith("-") : isLarger;
  const value = (group) => (name === "n" ? group.count : keys.includes(name) ? valueOf(group.first, name) : group.scores[name]?.mean ?? null);
  groups.sort((a, b) => compareValues(value(a), value(b), isDown));
  const total = groups.reduce((sum, group) => sum + group.count, 0);
  count(`${groups.length} ${groups.length === 1 ? "group" : "groups"} of ${total} finished runs: mean ± sample standard deviation (n). Other runs are left out.`);
  drawn.clear();
  showHead([...keys.map((key) => [key, titles.get(key) ?? key]), ["n", "n"], ...metrics.map((column) => [column.name, column.title])], keys.map(() => ({ kind: "key" })));
  table.tBodies[0].replaceChildren(
    ...groups.map((group) => {
      const column = (key) => columns.find((one) => one.name === key) ?? { name: key, kind: "key" };
      const heads = keys.map((key, place) => element(place ? "td" : "th", place ? {} : { scope: "row" }, formatValue(group.first, column(key)) || "–"));
      return element("tr", {}, ...heads, element("td", { class: "number" }, String(group.count)), ...metrics.map((metric) => element("td", { class: "number" }, formatScore(group.scores[metric.name]))));
    }),
  );
}

// ---- Choices.

function fill(select, entries, chosen) {
  const text = JSON.stringify([entries, chosen]);
  if (select.dataset.text === text) return;
  select.dataset.text = text;
  select.replaceChildren(...entries.map(([value, title]) => element("option", { value, selected: value === chosen }, title)));
  select.value = chosen;
}

function fillChoices() {
  const keys = keysOf().map((column) => [column.name, column.title]);
  const hasSeed = keys.some(([name]) => name === "seed" || name === "data.fold");
  const groups = [["", "nothing"], ...(hasSeed ? [["-seed", "all but seed and fold"]] : []), ...keys, ["state", "state"]];
  fill(byId("group"), groups, groups.some(([name]) => name === view.group) ? view.group : "");
  const axes = [...keys, ...metricsOf().map((column) => [column.name, column.title]), ["time", "time"], ["epoch", "epoch"], ["started", "started"]];
  fill(byId("x"), axes, xAxis());
  fill(byId("y"), axes, yAxis());
}

const isColumn = (name) => columns.some((column) => column.name === name);
function xAxis() {
  const keys = keysOf().map((column) => column.name).filter((name) => name !== "seed");
  return isColumn(view.x) ? view.x : keys.find((name) => isNumeric(rows.values(), name)) ?? keys[0] ?? "time";
}
const yAxis = () => (isColumn(view.y) ? view.y : isColumn(monitor) ? monitor : metricsOf()[0]?.name ?? "time");

// ---- Curves.

function chosenMetric(shown) {
  if (view.metric && curveNames.includes(view.metric)) return view.metric;
  if (shown.length === 1) return "";
  return curveNames.includes(monitor) ? monitor : curveNames.find((name) => name.startsWith("val")) ?? curveNames[0] ?? monitor;
}

function curveMetrics(shown) {
  const chosen = chosenMetric(shown);
  return chosen ? [chosen] : curveNames;
}

function showCurves() {
  const shown = ranked().slice(0, MAX_LINES);
  const place = byId("curve-charts"), chosen = chosenMetric(shown);
  if (shown.length === 1 && !chosen) return place.replaceChildren(runCharts(shown[0]));
  const lines = shown.map((row, i) => ({ row, curve: curves.get(`${row.id} ${chosen}`), color: colorOf(i) }));
  const known = lines.filter((line) => line.curve).map(({ row, curve, color }) => ({ name: row.name, class: color, x: curve.x, y: curve.y, isSelected: row.key === view.run }));
  if (!known.length) return place.replaceChildren(element("p", { class: "empty" }, "No run has logged this metric yet."));
  const note = known.length > COLORS ? `The best ${COLORS} by ${monitor} are colored, the others gray.` : "";
  place.replaceChildren(lineChart(chosen, known, { legend: known.slice(0, COLORS), note }));
}

// All metrics of one run, training and validation in one chart.
function runCharts(row) {
  const groups = new Map();
  for (const name of curveNames) {
    const curve = curves.get(`${row.id} ${name}`);
    if (!curve || curve.x.length < 1) continue;
    const [, split, kind] = /^(?:(train|val|speed)\/)?(.*)$/.exec(name);
    if (kind.startsWith("best_") || kind === "images") continue;
    if (!groups.has(kind)) groups.set(kind, []);
    groups.get(kind).push({ name: { train: "training", val: "validation" }[split] ?? name, class: split === "val" ? "c1" : "c0", x: curve.x, y: curve.y });
  }
  if (!groups.size) return element("p", { class: "empty" }, "The run has logged no metrics yet.");
  const order = ["loss", monitor.replace(/^val\//, ""), ...Object.keys(TITLES)];
  const place = (kind) => (order.includes(kind) ? order.indexOf(kind) : order.indexOf("lr") - 0.5);
  const charts = [...groups].sort(([a], [b]) => place(a) - place(b)).map(([kind, lines]) => lineChart(TITLES[kind] ?? kind, lines, { isWide: false }));
  return element("div", { class: "grid-2" }, ...charts);
}

// ---- Parallel coordinates; brushes are conditions of the filter.

const words = () => view.filter.match(/(?:[^\s"']+|"[^"]*"|'[^']*')+/g) ?? [];
const unquoted = (word) => word.replace(/["']/g, "");

function brushes() {
  const found = {};
  for (const word of words()) {
    const [, name, operator, value] = CONDITION.exec(unquoted(word)) ?? [];
    const column = columns.find((one) => one.name === name || one.title === name);
    if (!column) continue;
    const entry = (found[column.name] ??= {});
    if (operator === "=") entry.texts = value.split(",");
    if (operator === ">=" || operator === ">") entry.range = [Number(value), entry.range?.[1] ?? Infinity];
    if (operator === "<=" || operator === "<") entry.range = [entry.range?.[0] ?? -Infinity, Number(value)];
  }
  return found;
}

function brush(name, chosen) {
  const column = columns.find((one) => one.name === name);
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

function showParallel() {
  const place = byId("parallel-chart");
  const keys = keysOf().filter((column) => column.name !== "seed").slice(0, MAX_AXES - 1);
  const axes = [...keys, ...columns.filter((column) => column.name === monitor)];
  const all = ids.map((id) => rows.get(id)).filter((row) => row && row.state !== "waiting");
  if (!keys.length || all.length < 2) return place.replaceChildren(element("p", { class: "empty" }, "Needs at least two runs that differ in a key."));
  const order = new Map(ranked().map((row, i) => [row.id, i]));
  const lines = all
    .map((row) => ({ id: row.id, name: row.name, values: axes.map((axis) => valueOf(row, axis.name)), isOut: Boolean(match) && !match.has(row.id), isSelected: row.key === view.run, class: colorOf(order.get(row.id) ?? COLORS), order: order.get(row.id) ?? Infinity }))
    .sort((a, b) => a.order - b.order)
    .slice(0, 2 * MAX_LINES);
  const note = all.length > lines.length ? `Drawn: ${lines.length} of ${all.length} runs.` : "";
  place.replaceChildren(parallelChart(`Keys and ${monitor}`, axes, lines, brushes(), brush, (id) => choose(rows.get(id)), note));
}

// ---- Scatter.

function showScatter() {
  const place = byId("scatter-chart"), x = xAxis(), y = yAxis();
  const points = ranked()
    .map((row, i) => ({ id: row.id, name: row.name, x: valueOf(row, x), y: valueOf(row, y), class: colorOf(i), isSelected: row.key === view.run }))
    .filter((point) => point.x !== null && point.y !== null);
  if (!points.length) return place.replaceChildren(element("p", { class: "empty" }, "No run has values of both columns."));
  const axis = (name) => [columns.find((column) => column.name === name)?.title ?? name, keysOf().some((column) => column.name === name)];
  place.replaceChildren(scatterChart(points, axis(x), axis(y), (id) => choose(rows.get(id))));
}

// ---- Errors.

function showErrors() {
  const failed = ids.map((id) => rows.get(id)).filter((row) => row && (row.log !== undefined || (row.error && row.state !== "done")));
  const shown = failed.slice(0, 30).map((row, place) => {
    const card = element("article", { class: "card failure" }, element("h4", {}, element("button", { class: "name", type: "button", onclick: () => choose(row) }, row.name), badge(row.state)));
    if (row.error) card.append(element("p", {}, row.error));
    else if (row.state === "dead") card.append(element("p", {}, "The process ended without recording a result."));
    if (row.log) card.append(element("details", { open: row.state === "failed" && place < 3 }, element("summary", {}, "Last lines of its log"), element("pre", {}, row.log)));
    return card;
  });
  if (shown.length > 5) {
    const rest = shown.splice(5);
    shown.push(element("details", {}, element("summary", {}, `${rest.length} more`), ...rest));
  }
  if (failed.length > 30) shown.push(element("p", { class: "note" }, `${failed.length - 30} more: filter with state=failed,dead,interrupted`));
  byId("errors").querySelector("h2").textContent = failed.length ? `Errors (${failed.length})` : "Errors";
  byId("failures").replaceChildren(...(shown.length ? shown : [element("p", { class: "empty" }, "None.")]));
}

// ---- Selected run.

function choose(row) {
  setView({ run: view.run === row.key ? "" : row.key });
  showDetails();
  showTable(new Set());
  showParallel();
  showScatter();
  showCurves();
  if (view.run) byId("run").scrollIntoView({ block: "start" });
  poll();
}

let shownDetails = "";
function showDetails() {
  const row = selected(), place = byId("details");
  const text = JSON.stringify(row ?? null);
  if (text === shownDetails) return;
  const isSame = row && shownDetails && JSON.parse(shownDetails)?.id === row.id;
  if (isSame && place.contains(document.activeElement) && document.activeElement.matches("input, textarea")) return; // somebody types
  shownDetails = text;
  if (!row) {
    log = { run: null, next: -1 };
    return place.replaceChildren(element("p", { class: "empty" }, view.run && rows.size ? `There is no run ${view.run}.` : "Choose a run in the table."));
  }
  const facts = [["name", row.name], ["folder", row.path], ["state", badge(row.state)]];
  if (row.error) facts.push(["error", row.error]);
  for (const column of columns) {
    if (["key", "metric"].includes(column.kind) && valueOf(row, column.name) !== null) facts.push([column.name, column.kind === "metric" ? formatMetric(valueOf(row, column.name)) : formatValue(row, column)]);
  }
  if (!isEditable && row.tags.length) facts.push(["tags", row.tags.join(", ")]);
  if (!isEditable && row.note) facts.push(["note", row.note]);
  const list = element("tbody", {}, ...facts.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value))));
  const pre = (isSame && byId("log")) || element("pre", { id: "log", tabindex: 0, role: "log", "aria-label": "Log of the run", "aria-live": "off" });
  place.replaceChildren(element("div", { class: "scroll" }, element("table", { class: "facts" }, list)), ...(isEditable ? [notesForm(row)] : []), ...commandsOf(row), element("h3", {}, "Log"), pre);
  if (!isSame) log = { run: null, next: -1 };
  else if (row.state !== "running") log.isLast = false;
}

function commandsOf(row) {
  const folder = /^[\w./+-]+$/.test(row.path) ? row.path : `'${row.path.replaceAll("'", "'\\''")}'`;
  const lines = [];
  if (["dead", "interrupted"].includes(row.state)) lines.push(`python scripts/train.py resume=${folder}`);
  if (row.state === "done") lines.push(`python scripts/evaluate.py run=${folder}`);
  if (row.state !== "waiting") lines.push(`python scripts/report.py run=${folder}`);
  return lines.length ? [element("h3", {}, "Commands"), element("pre", {}, lines.join("\n"))] : [];
}

function notesForm(row) {
  const tags = element("input", { value: row.tags.join(" "), "aria-describedby": "saved", autocomplete: "off" });
  const note = element("textarea", { maxlength: 10000 });
  note.value = row.note;
  const saved = element("span", { class: "dim", role: "status", id: "saved" });
  const form = element("form", { class: "notes" }, element("label", {}, "Tags, separated by spaces", tags), element("label", {}, "Note", note), element("p", {}, element("button", { class: "plain" }, "Save"), " ", saved));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const content = { run: row.id, tags: tags.value.split(/[\s,]+/).filter(Boolean), note: note.value };
    try {
      const answer = await fetch("notes", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });
      const { error } = await answer.json();
      saved.textContent = error ? `not saved: ${error}` : "saved";
      if (!error) poll();
    } catch {
      saved.textContent = "not saved: the server does not answer";
    }
  });
  return form;
}

// ---- Start.

function setFilter(text) {
  setView({ filter: text });
  byId("filter").value = text;
  poll();
}

let typing = 0;
byId("filter").value = view.filter;
byId("filter").addEventListener("input", (event) => {
  setView({ filter: event.target.value });
  clearTimeout(typing);
  typing = setTimeout(poll, 250);
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("reset").addEventListener("click", () => setFilter(""));
byId("group").addEventListener("change", (event) => {
  setView({ group: event.target.value, sort: "" });
  drawn.clear();
  showTable(new Set());
});
byId("metric").addEventListener("change", (event) => {
  setView({ metric: event.target.value });
  poll();
});
for (const axis of ["x", "y"]) {
  byId(axis).addEventListener("change", (event) => {
    setView({ [axis]: event.target.value });
    showScatter();
  });
}
addEventListener("popstate", () => {
  view = readView();
  byId("filter").value = view.filter;
  fillChoices();
  poll();
});
matchMedia("(max-width: 600px)").addEventListener("change", () => {
  showParallel();
  showScatter();
  showCurves();
});
document.addEventListener("visibilitychange", () => document.hidden || poll());
setView({}); // removes the token from the address
poll();
