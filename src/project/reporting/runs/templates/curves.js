// Curves of the best runs, or all curves of one run.
import { byId, rankedRows, state, view } from "./state.js";
import { COLORS, colorOf, extent, lineChart } from "./svg_charts.js";
import { element, fill } from "./values.js";

const MAX_LINES = 300, MIN_RUNS_FOR_FENCE = 4;
const TITLES = { loss: "Loss", acc: "Accuracy", lr: "Learning rate", grad_norm: "Gradient norm", images_per_s: "Throughput, images per second", data_wait_fraction: "Fraction of time waiting for data", memory_gb: "GPU memory, GB" };
const curves = new Map(); // by id and metric
let version = 0, names = [], request = "";

export function forgetCurves() {
  curves.clear();
  version = 0;
  request = "";
}

// Ask the server for points that are new.
export async function readCurves() {
  const shown = rankedRows().slice(0, MAX_LINES), metrics = wantedMetrics(shown);
  const wanted = `${shown.map((row) => row.id)}|${metrics}`, isSame = wanted === request;
  if (isSame && !state.summary.is_active && version) return;
  if (!isSame) version = 0;
  request = wanted;
  const query = new URLSearchParams([["runs", shown.map((row) => row.id).join(",")], ["since", version], ...metrics.map((name) => ["metric", name])]);
  const answer = await (await fetch(`curves?${query}`)).json();
  version = answer.version;
  for (const curve of answer.curves) curves.set(`${curve.run} ${curve.metric}`, curve);
  const hasNewNames = JSON.stringify(answer.names) !== JSON.stringify(names);
  if (hasNewNames) {
    names = answer.names;
    fill(byId("metric"), [...(shown.length === 1 ? [["", "all"]] : []), ...names.map((name) => [name, name])], chosenMetric(shown));
    if (wantedMetrics(shown).join() !== metrics.join()) return readCurves();
  }
  if (!isSame || hasNewNames || answer.curves.length) showCurves();
}

function chosenMetric(shown) {
  if (view.metric && names.includes(view.metric)) return view.metric;
  if (shown.length === 1) return "";
  return names.includes(state.monitor) ? state.monitor : names.find((name) => name.startsWith("val")) ?? names[0] ?? state.monitor;
}

function wantedMetrics(shown) {
  const chosen = chosenMetric(shown);
  return chosen ? [chosen] : names;
}

export function showCurves() {
  const shown = rankedRows().slice(0, MAX_LINES), place = byId("curve-charts"), chosen = chosenMetric(shown);
  if (shown.length === 1 && !chosen) return place.replaceChildren(runCharts(shown[0]));
  const lines = shown.map((row, i) => ({ row, curve: curves.get(`${row.id} ${chosen}`), color: colorOf(i) }));
  const known = lines.filter((line) => line.curve).map(({ row, curve, color }) => ({ name: row.name, class: color, x: curve.x, y: curve.y, isSelected: row.key === view.run }));
  if (!known.length) return place.replaceChildren(element("p", { class: "empty" }, "No run has logged this metric yet."));
  const notes = known.length > COLORS ? [`The best ${COLORS} by ${state.monitor} are colored, the others gray.`] : [];
  const isLoss = chosen.endsWith("loss"), isRanked = chosen === state.monitor;
  const [yRange, outside] = isLoss || isRanked ? runsThatMatter(known, isRanked && state.isLarger) : [null, 0];
  if (outside) notes.push(`The scale is that of the runs that did not diverge; ${outside} ${outside === 1 ? "curve leaves" : "curves leave"} it.`);
  place.replaceChildren(lineChart(chosen, known, { legend: known.slice(0, COLORS), note: notes.join(" "), yRange }));
}

// Range of the lines that do not end far worse than most, and the number of lines that leave it, as in figures/charts.py.
function runsThatMatter(lines, isLarger) {
  const sign = isLarger ? -1 : 1;
  const finite = lines.map((line) => line.y.filter((value) => value !== null)).filter((values) => values.length);
  if (finite.length < MIN_RUNS_FOR_FENCE) return [null, 0];
  const ends = finite.map((values) => sign * values.at(-1)), sorted = [...ends].sort((a, b) => a - b);
  const quantile = (fraction) => {
    const place = fraction * (sorted.length - 1), low = Math.floor(place);
    return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
  };
  const fence = quantile(0.75) + 3 * Math.max(quantile(0.75) - quantile(0.25), 0.01 * Math.abs(quantile(0.5)));
  const kept = finite.filter((_, i) => ends[i] <= fence).flat(), [low, high] = extent(kept);
  const outside = finite.filter((values) => values.some((value) => value < low || value > high)).length;
  return outside && low < high ? [[low, high], outside] : [null, 0];
}

// All metrics of one run, training and validation in one chart.
function runCharts(row) {
  const groups = new Map();
  for (const name of names) {
    const curve = curves.get(`${row.id} ${name}`);
    if (!curve || curve.x.length < 1) continue;
    const [, split, kind] = /^(?:(train|val|speed)\/)?(.*)$/.exec(name);
    if (kind.startsWith("best_") || kind === "images") continue;
    if (!groups.has(kind)) groups.set(kind, []);
    groups.get(kind).push({ name: { train: "training", val: "validation" }[split] ?? name, class: split === "val" ? "c1" : "c0", x: curve.x, y: curve.y });
  }
  if (!groups.size) return element("p", { class: "empty" }, "The run has logged no metrics yet.");
  const order = ["loss", state.monitor.replace(/^val\//, ""), ...Object.keys(TITLES)];
  const place = (kind) => (order.includes(kind) ? order.indexOf(kind) : order.indexOf("lr") - 0.5);
  const charts = [...groups].sort(([a], [b]) => place(a) - place(b)).map(([kind, lines]) => lineChart(TITLES[kind] ?? kind, lines, { isWide: false }));
  return element("div", { class: "grid-2" }, ...charts);
}
