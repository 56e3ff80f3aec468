// Selected run: its facts, tags and note, commands, and its log.
import { askServer, byId, isEditable, rows, selectedRow, state, view } from "./state.js";
import { badge, element, formatMetric, formatValue, valueOf } from "./values.js";

const MAX_LOG = 400000, KEPT_LOG = 300000; // characters
let shownRun = "";
let log = { run: null, next: -1 };

export function showDetails() {
  const row = selectedRow(), place = byId("details"), text = JSON.stringify(row ?? null);
  if (text === shownRun) return;
  const isSame = row && shownRun && JSON.parse(shownRun)?.id === row.id;
  if (isSame && place.contains(document.activeElement) && document.activeElement.matches("input, textarea")) return; // somebody types
  shownRun = text;
  if (!row) {
    log = { run: null, next: -1 };
    return place.replaceChildren(element("p", { class: "empty" }, view.run && rows.size ? `There is no run ${view.run}.` : "Choose a run in the table."));
  }
  const pre = (isSame && byId("log")) || element("pre", { id: "log", tabindex: 0, role: "log", "aria-label": "Log of the run", "aria-live": "off" });
  place.replaceChildren(factsOf(row), ...(isEditable ? [notesForm(row)] : []), ...commandsOf(row), element("h3", {}, "Log"), pre);
  if (!isSame) log = { run: null, next: -1 };
  else if (row.state !== "running") log.isLast = false;
}

function factsOf(row) {
  const facts = [["name", row.name], ["folder", row.path], ["state", badge(row.state)]];
  if (row.error) facts.push(["error", row.error]);
  for (const column of state.columns) {
    const value = valueOf(row, column.name);
    if (column.kind !== "fact" && value !== null) facts.push([column.name, column.kind === "metric" ? formatMetric(value) : formatValue(row, column)]);
  }
  if (!isEditable && row.tags.length) facts.push(["tags", row.tags.join(", ")]);
  if (!isEditable && row.note) facts.push(["note", row.note]);
  const lines = facts.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)));
  return element("div", { class: "scroll" }, element("table", { class: "facts" }, element("tbody", {}, ...lines)));
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
      if (!error) askServer();
    } catch {
      saved.textContent = "not saved: the server does not answer";
    }
  });
  return form;
}

// Ask the server for new lines of the log.
export async function readLog() {
  const row = selectedRow();
  if (!row || row.state === "waiting") return;
  const isSame = log.run === row.id;
  if (isSame && log.next >= 0 && row.state !== "running" && log.isLast) return;
  const answer = await (await fetch(`log?run=${row.id}&from=${isSame ? log.next : -1}`)).json();
  const place = byId("log");
  if (!place || answer.error || selectedRow()?.id !== row.id) return;
  const isAtEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 40 || !isSame;
  if (answer.is_new || !isSame) place.textContent = answer.text;
  else if (answer.text) place.append(answer.text);
  if (place.textContent.length > MAX_LOG) place.textContent = place.textContent.slice(-KEPT_LOG);
  if (isAtEnd) place.scrollTop = place.scrollHeight;
  if (!place.textContent) place.textContent = "no lines yet";
  log = { run: row.id, next: answer.next, isLast: row.state !== "running" };
}
