"use strict";
const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), context = canvas.getContext("2d"), stage = $("stage");
const BOX = 400, PEN = 0.115, MIN_SIDE = 0.22, MAX_FIXED = 12, MAX_BARS = 8, STEP = 0.03;

// A stroke is a list of points in [0, 1]; `file` is a picture that replaces the drawing.
let strokes = [], current = null, file = null, facts = {}, busy = false, again = false, spoken = true, turn = 0;
let pen = null; // of the keyboard: {x, y, down}

const isColor = () => facts.input_shape[0] === 3;

// ---- drawing

function paint(target, list, width, map) {
  target.lineCap = target.lineJoin = "round";
  target.lineWidth = width;
  for (const stroke of list) {
    target.beginPath();
    stroke.forEach((point, i) => target[i ? "lineTo" : "moveTo"](...map(point)));
    if (stroke.length === 1) target.lineTo(...map(stroke[0])); // a dot
    target.stroke();
  }
}

function redraw() {
  const side = canvas.width;
  context.clearRect(0, 0, side, side);
  context.strokeStyle = isColor() ? "#10151c" : "#fff";
  paint(context, strokes, 0.075 * side, ([x, y]) => [x * side, y * side]);
  if (pen) {
    const [x, y] = [pen.x * side, pen.y * side];
    context.lineWidth = 4;
    context.strokeStyle = pen.down ? "#f08a4b" : "#56b4e9";
    context.beginPath();
    context.arc(x, y, 18, 0, 7);
    context.moveTo(x - 28, y); context.lineTo(x + 28, y);
    context.moveTo(x, y - 28); context.lineTo(x, y + 28);
    context.stroke();
  }
  $("undo").disabled = !strokes.length;
  $("clear").disabled = !strokes.length && !file;
}

// The drawing in a box of its own size, so that a small one has lines as thick as a large one.
function drawingBlob() {
  const copy = document.createElement("canvas"), target = copy.getContext("2d");
  copy.width = copy.height = 560;
  target.fillStyle = isColor() ? "#fff" : "#000";
  target.fillRect(0, 0, 560, 560);
  target.strokeStyle = isColor() ? "#000" : "#fff";
  if (isColor()) paint(target, strokes, 0.075 * 560, ([x, y]) => [x * 560, y * 560]);
  else {
    const points = strokes.flat(), xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
    const bounds = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [1, 0]);
    const [left, right] = bounds(xs), [top, bottom] = bounds(ys);
    const scale = BOX / Math.max(right - left, bottom - top, MIN_SIDE);
    const shift = [280 - (scale * (left + right)) / 2, 280 - (scale * (top + bottom)) / 2];
    paint(target, strokes, PEN * BOX, ([x, y]) => [x * scale + shift[0], y * scale + shift[1]]);
  }
  return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const inside = (value) => Math.min(1, Math.max(0, value));
  return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  pen = null;
  forgetFile();
  current = { id: event.pointerId, points: [place(event)] };
  strokes.push(current.points);
  redraw();
  ask(false);
});
canvas.addEventListener("pointermove", (event) => {
  if (!current || current.id !== event.pointerId) return;
  const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const one of events.length ? events : [event]) current.points.push(place(one));
  redraw();
  ask(false);
});
for (const name of ["pointerup", "pointercancel"])
  canvas.addEventListener(name, (event) => {
    if (!current || current.id !== event.pointerId) return;
    current = null;
    ask(true);
  });

canvas.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const known = event.key in moves || [" ", "Delete", "Backspace", "Escape"].includes(event.key);
  if (!known || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (event.key === "Delete") return clear();
  if (event.key === "Backspace") return undo();
  if (event.key === "Escape") { pen = null; return redraw(); }
  pen = pen || { x: 0.5, y: 0.3, down: false };
  if (event.key === " ") {
    pen.down = !pen.down;
    if (pen.down) { forgetFile(); strokes.push([[pen.x, pen.y]]); }
    say(pen.down ? "pen down" : "pen up");
    if (!pen.down) ask(true);
  } else {
    const step = STEP * (event.shiftKey ? 3 : 1), [dx, dy] = moves[event.key];
    pen.x = Math.min(1, Math.max(0, pen.x + step * dx));
    pen.y = Math.min(1, Math.max(0, pen.y + step * dy));
    if (pen.down) { strokes[strokes.length - 1].push([pen.x, pen.y]); ask(false); }
  }
  redraw();
});
canvas.addEventListener("blur", () => {
  if (pen && pen.down) ask(true);
  pen = null;
  redraw();
});

function clear() {
  strokes = [];
  if (pen) pen.down = false;
  forgetFile();
  reset();
  redraw();
  say("cleared");
}
function undo() {
  strokes.pop();
  if (pen) pen.down = false;
  redraw();
  if (strokes.length) ask(true);
  else { reset(); say("cleared"); }
}
$("clear").addEventListener("click", clear);
$("undo").addEventListener("click", undo);

// ---- pictures

function forgetFile() {
  if (!file) return;
  URL.revokeObjectURL($("preview").src);
  $("preview").removeAttribute("src");
  $("picture").hidden = true;
  $("file").value = "";
  file = null;
}
function show(picked) {
  if (!picked) return;
  forgetFile();
  strokes = [];
  file = picked;
  $("preview").src = URL.createObjectURL(picked);
  $("preview").alt = $("file-name").textContent = picked.name || "pasted picture";
  $("picture").hidden = false;
  redraw();
  ask(true);
}
$("preview").addEventListener("error", () => ($("preview").alt = "no preview in this browser"));
$("file").addEventListener("change", () => show($("file").files[0]));
$("explain").addEventListener("change", () => ask(true));
$("prepare").addEventListener("change", () => file && ask(true));
document.addEventListener("paste", (event) => show([...event.clipboardData.files].find((one) => one.type.startsWith("image/"))));
document.addEventListener("dragover", (event) => { event.preventDefault(); stage.classList.add("over"); });
document.addEventListener("dragleave", (event) => event.relatedTarget || stage.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  show(event.dataTransfer.files[0]);
});

// ---- answers: one request at a time; what changes meanwhile is asked afterward

const isDrawing = () => current || (pen && pen.down);

// Explanations take longer than predictions: only when the pen rests, after the answer.
const wantsWhy = () => facts.explains && $("explain").checked && !isDrawing();

async function ask(isFinal, why = false) {
  spoken = spoken && !isFinal;
  if (busy) { again = true; return; }
  if (!file && !strokes.length) return;
  busy = true;
  again = false;
  const asked = turn;
  let isAnswered = false;
  try {
    const prepared = !isColor() && (file ? $("prepare").checked : true);
    const query = new URLSearchParams({ top_k: facts.num_classes <= MAX_FIXED ? MAX_FIXED : MAX_BARS, show_input: true, drawing: prepared });
    if (why) query.set("explain", true);
    const body = file || (await drawingBlob());
    const response = await fetch(`models/${encodeURIComponent(facts.name)}/predict?${query}`, {
      method: "POST", body, headers: { "Content-Type": "application/octet-stream" },
    });
    const answer = await response.json().catch(() => ({ detail: response.statusText }));
    if (asked === turn) {
      isAnswered = response.ok;
      if (response.ok) render(answer);
      else if (response.status === 429 || response.status === 503) { again = true; await new Promise((done) => setTimeout(done, 300)); }
      else problem(typeof answer.detail === "string" ? answer.detail : "the request was refused");
    }
  } catch {
    if (asked === turn) problem("the server does not answer; is it still running?");
  }
  busy = false;
  if (again) ask(false);
  else if (isAnswered && !why && wantsWhy()) ask(false, true);
}

const percent = (value) => (value > 0.9995 ? "> 99.9" : value < 0.0005 ? "< 0.1" : (100 * value).toFixed(1)) + " %";

function render(answer) {
  const [row] = answer.predictions, bars = $("bars");
  const isFixed = facts.num_classes <= MAX_FIXED;
  const top = isFixed
    ? [...row.top].sort((a, b) => a.class.localeCompare(b.class, "en", { numeric: true }))
    : row.top;
  bars.classList.toggle("wide", top.some((one) => one.class.length > 3));
  if (bars.children.length !== top.length)
    bars.replaceChildren(...top.map(() => {
      const item = document.createElement("li");
      for (const name of ["name", "track", "value"]) item.append(Object.assign(document.createElement("span"), { className: name }));
      item.children[1].append(Object.assign(document.createElement("span"), { className: "fill" }));
      return item;
    }));
  top.forEach((one, i) => {
    const [name, track, value] = bars.children[i].children;
    name.textContent = one.class;
    track.firstChild.style.width = `${100 * one.probability}%`;
    value.textContent = percent(one.probability);
    bars.children[i].classList.toggle("best", one.class === row.class);
  });
  $("answer").textContent = row.class;
  $("answer").classList.toggle("long", row.class.length > 4);
  $("certainty").textContent = percent(row.probability);
  $("input").src = row.input;
  $("seen").hidden = false;
  const why = row.explanation;
  $("why").hidden = !(why && why.map);
  if (why && why.map) {
    $("under").src = row.input;
    $("map").src = why.map;
    $("map").alt = `Map of the evidence for ${why.class}`;
    $("explained").textContent = `“${why.class}”`;
    $("method").textContent = why.method.replaceAll("_", " ");
  }
  $("problem").hidden = true;
  $("facts").textContent = `${answer.run}, ${answer.checkpoint}`;
  // Screen readers hear the finished drawing's class, not those of its parts.
  if (!spoken && !again && !isDrawing()) {
    spoken = true;
    say(`Prediction: ${row.class}, ${Math.round(100 * row.probability)} percent`);
  }
}
function problem(text) {
  reset();
  $("problem").textContent = text;
  $("problem").hidden = false;
}
function reset() {
  turn += 1;
  $("bars").replaceChildren();
  $("answer").textContent = "–";
  $("answer").classList.remove("long");
  $("certainty").textContent = "nothing yet";
  $("seen").hidden = $("problem").hidden = true;
}
function say(text) {
  $("status").textContent = text;
}

// ---- models

function choose() {
  facts = JSON.parse($("model").selectedOptions[0].dataset.facts);
  const [channels, height, width] = facts.input_shape;
  $("draw-heading").textContent = channels === 3 ? "Or a drawing" : "Your drawing";
  $("picture-heading").textContent = channels === 3 ? "Your picture" : "Or a picture";
  $("title").textContent = document.title = channels === 3 ? "Show a picture" : facts.is_digits ? "Draw a digit" : "Draw something";
  stage.classList.toggle("color", channels === 3);
  $("prepare-line").hidden = channels === 3;
  $("explain-line").hidden = !facts.explains;
  $("size").textContent = `${width} × ${height} pixels`;
  $("facts").textContent = `${facts.run}, ${facts.checkpoint}`;
  reset();
  redraw();
  ask(true);
}
$("model").addEventListener("change", choose);
choose();
