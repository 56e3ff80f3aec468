// Page of a running sweep or of a list of runs: shows the runs in the page, then asks the server for what changed.
import { forgetCurves, readCurves, showCurves } from "./curves.js";
import { readLog, showDetails } from "./details.js";
import { fillAxes, showParallel, showScatter } from "./relations.js";
import { askServer, byId, drawLater, keyColumns, readView, rows, setFilter, setView, state, view } from "./state.js";
import { say, showErrors, showSummary } from "./summary.js";
import { forgetLines, showTable, showTimes } from "./table.js";
import { fill } from "./values.js";

const ACTIVE_MS = 2000, IDLE_MS = 10000, TYPING_MS = 250;
let server = "", version = 0, shownMatch; // of the last answer
let timer = 0, isPolling = false, isPollDue = false;

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
  timer = setTimeout(poll, isPollDue ? 0 : state.summary.is_active ? ACTIVE_MS : IDLE_MS);
  isPollDue = false;
}

function update(answer) {
  const isFirst = !version;
  if (answer.full) {
    rows.clear();
    forgetLines();
    forgetCurves();
  }
  ({ server, version } = answer);
  if (answer.rows) updateRows(answer);
  if (!answer.filter_error) state.match = answer.match && new Set(answer.match);
  byId("filter-error").hidden = !answer.filter_error;
  byId("filter-error").textContent = answer.filter_error;
  state.summary = answer.summary;
  showSummary();
  const match = answer.filter_error ? shownMatch : JSON.stringify(answer.match), isMatchNew = match !== shownMatch;
  shownMatch = match;
  if (!answer.rows && !isMatchNew) return showTimes();
  showTable(new Set(isFirst ? [] : answer.rows?.map((row) => row.id)));
  if (answer.rows) showDetails();
  drawLater("parallel", showParallel);
  drawLater("scatter", showScatter);
  if (answer.rows) drawLater("errors", showErrors);
}

function updateRows(answer) {
  if (JSON.stringify(state.columns) !== JSON.stringify(answer.columns)) {
    state.columns = answer.columns;
    forgetLines();
  }
  for (const row of answer.rows) rows.set(row.id, row);
  Object.assign(state, { ids: answer.ids, monitor: answer.monitor, isLarger: answer.larger_is_better });
  const known = new Set(answer.ids);
  for (const id of [...rows.keys()]) if (!known.has(id)) rows.delete(id);
  fillChoices();
}

function fillChoices() {
  const keys = keyColumns().map((column) => [column.name, column.title]);
  const hasSeed = keys.some(([name]) => name === "seed" || name === "data.fold");
  const groups = [["", "nothing"], ...(hasSeed ? [["-seed", "all but seed and fold"]] : []), ...keys, ["state", "state"]];
  fill(byId("group"), groups, groups.some(([name]) => name === view.group) ? view.group : "");
  fillAxes();
}

function showCharts() {
  showParallel();
  showScatter();
  showCurves();
}

function listen() {
  let typing = 0;
  byId("filter").addEventListener("input", (event) => {
    setView({ filter: event.target.value });
    clearTimeout(typing);
    typing = setTimeout(poll, TYPING_MS);
  });
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("reset").addEventListener("click", () => setFilter(""));
  byId("group").addEventListener("change", (event) => {
    setView({ group: event.target.value, sort: "" });
    forgetLines();
    showTable();
  });
  byId("metric").addEventListener("change", (event) => {
    setView({ metric: event.target.value });
    askServer();
  });
  for (const axis of ["x", "y"]) {
    byId(axis).addEventListener("change", (event) => {
      setView({ [axis]: event.target.value });
      showScatter();
    });
  }
  document.addEventListener("ask-server", poll);
  document.addEventListener("run-chosen", () => {
    showDetails();
    showTable();
    showCharts();
    if (view.run) byId("run").scrollIntoView({ block: "start" });
    poll();
  });
  addEventListener("popstate", () => {
    Object.assign(view, readView());
    byId("filter").value = view.filter;
    fillChoices();
    poll();
  });
  matchMedia("(max-width: 600px)").addEventListener("change", showCharts);
  document.addEventListener("visibilitychange", () => document.hidden || poll());
}

setView({}); // removes the token from the address
byId("filter").value = view.filter;
listen();
update(JSON.parse(byId("first-answer").textContent));
poll();
