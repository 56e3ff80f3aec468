// Head of the page: states, progress and the best run. End of the page: errors.
import { byId, choose, rows, state } from "./state.js";
import { badge, element } from "./values.js";

const MAX_ERRORS = 30, OPEN_ERRORS = 5;

export function say(text) {
  setText(byId("connection"), text);
  byId("connection").hidden = !text;
}

export function setText(place, text) {
  if (place.textContent !== text) place.textContent = text; // a screen reader repeats each change
}

export function showSummary() {
  const { summary } = state, percent = `${Math.round(100 * summary.fraction)} %`, isRunning = summary.is_active;
  byId("states").replaceChildren(...Object.entries(summary.states).flatMap(([name, count]) => [element("span", { class: `badge ${name}` }, `${count} ${name}`), " "]));
  byId("progress").hidden = !isRunning;
  byId("progress").firstElementChild.value = summary.fraction;
  const ended = ["done", "pruned", "paused", "eliminated", "failed"].reduce((sum, name) => sum + (summary.states[name] ?? 0), 0);
  const left = summary.left ? `, about ${summary.left} left` : "";
  byId("progress").lastElementChild.textContent = summary.count === 1 ? percent + left : `${ended} of ${summary.count} jobs ended${left}`;
  byId("end").hidden = !summary.end;
  setText(byId("end"), summary.end);
  const best = rows.get(summary.best);
  byId("best").hidden = !best || summary.count === 1;
  if (best) byId("best").replaceChildren(element("button", { class: "name", type: "button", onclick: () => choose(best) }, "Best run"), `: ${summary.best_line}`);
  document.title = document.title.replace(/^(\d+ % · )?/, isRunning ? `${percent} · ` : "");
}

export function showErrors() {
  const failed = state.ids.map((id) => rows.get(id)).filter((row) => row && (row.log !== undefined || (row.error && row.state !== "done")));
  const cards = failed.slice(0, MAX_ERRORS).map(errorCard);
  if (cards.length > OPEN_ERRORS) {
    const rest = cards.splice(OPEN_ERRORS);
    cards.push(element("details", {}, element("summary", {}, `${rest.length} more`), ...rest));
  }
  if (failed.length > MAX_ERRORS) cards.push(element("p", { class: "note" }, `${failed.length - MAX_ERRORS} more: filter with state=failed,dead,interrupted`));
  byId("errors").querySelector("h2").textContent = failed.length ? `Errors (${failed.length})` : "Errors";
  byId("failures").replaceChildren(...(cards.length ? cards : [element("p", { class: "empty" }, "None.")]));
}

function errorCard(row, place) {
  const name = element("button", { class: "name", type: "button", onclick: () => choose(row) }, row.name);
  const card = element("article", { class: "card failure" }, element("h4", {}, name, badge(row.state)));
  if (row.error) card.append(element("p", {}, row.error));
  else if (row.state === "dead") card.append(element("p", {}, "The process ended without recording a result."));
  if (row.log) card.append(element("details", { open: row.state === "failed" && place < 3 }, element("summary", {}, "Last lines of its log"), element("pre", {}, row.log)));
  return card;
}
