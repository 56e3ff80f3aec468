"use strict";
// Conveniences: without them the page shows the same.

// Values under the pointer.
const tip = document.getElementById("tip");
for (const chart of document.querySelectorAll("svg.chart[data-lines]")) {
  const lines = JSON.parse(chart.dataset.lines);
  const [low, high, start, end] = JSON.parse(chart.dataset.frame);
  const cursor = chart.querySelector(".cursor");
  const nearest = (xs, wanted) => xs.reduce((best, x, i) => (Math.abs(x - wanted) < Math.abs(xs[best] - wanted) ? i : best), 0);
  // Show the values nearest to a position, next to a point of the window; return the position of the values.
  const show = (wanted, left, top) => {
    const places = lines.map((line) => nearest(line.x, wanted));
    const distances = lines.map((line, i) => Math.abs(line.x[places[i]] - wanted));
    const first = distances.indexOf(Math.min(...distances));
    const x = lines[first].x[places[first]];
    tip.replaceChildren(`${chart.dataset.x} ${x}`);
    lines.forEach((line, i) => {
      const row = document.createElement("div"), dot = document.createElement("i");
      row.className = line.class;
      const y = line.y[places[i]];
      const own = line.x[places[i]] === x ? "" : ` (${chart.dataset.x} ${line.x[places[i]]})`;
      row.append(dot, `${line.name}: ${y === null ? "not finite" : y}${own}`);
      tip.append(row);
    });
    const at = start + ((x - low) / (high - low || 1)) * (end - start);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    if (left === undefined) {
      const place = new DOMPoint(at, Number(cursor.getAttribute("y1"))).matrixTransform(chart.getScreenCTM());
      [left, top] = [place.x, place.y];
    }
    const right = left + 16 + box.width < innerWidth;
    tip.style.left = `${Math.max(4, right ? left + 16 : left - 16 - box.width)}px`;
    tip.style.top = `${Math.max(4, Math.min(top + 12, innerHeight - box.height - 4))}px`;
    return x;
  };
  const hide = () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };
  chart.addEventListener("pointermove", (event) => {
    const inside = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    show(low + ((inside.x - start) / (end - start)) * (high - low), event.clientX, event.clientY);
  });
  chart.addEventListener("pointerleave", hide);
  // Arrow keys, Home and End move through the values.
  const positions = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  let place = positions.length - 1;
  chart.tabIndex = 0;
  chart.addEventListener("focus", () => chart.matches(":focus-visible") && show(positions[place]));
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -positions.length, End: positions.length };
    if (event.key === "Escape") hide();
    if (!(event.key in steps)) return;
    event.preventDefault();
    place = Math.max(0, Math.min(positions.length - 1, place + steps[event.key]));
    show(positions[place]);
  });
}

// Tables: a click on a heading sorts, and what has no value stays last; long tables have pages and a filter.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells], body = table.tBodies[0], size = Number(table.dataset.page);
  let rows = [...body.rows], first = 0, wanted = "", update = () => {};
  const sort = (heading, place) => {
    const before = heading.getAttribute("aria-sort");
    const direction = before ? (before === "ascending" ? "descending" : "ascending") : heading.dataset.first || "ascending";
    const value = (row) => {
      const cell = row.cells[place];
      return cell.dataset.order !== undefined ? Number(cell.dataset.order) : cell.classList.contains("number") ? null : cell.textContent;
    };
    const keyed = rows.map((row) => [value(row), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? (a > b) - (a < b) : String(a).localeCompare(String(b), "en", { numeric: true });
      return direction === "descending" ? -order : order;
    });
    rows = keyed.map(([, row]) => row);
    body.append(...rows);
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", direction);
    first = 0;
    update();
  };
  headings.forEach((heading, place) => {
    heading.tabIndex = 0;
    heading.addEventListener("click", () => sort(heading, place));
    heading.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort(heading, place);
    });
  });
  table.classList.add("ready");
  if (!size) continue;
  const pager = document.createElement("div"), shown = document.createElement("span");
  pager.className = "pager";
  shown.setAttribute("role", "status");
  const button = (text, move) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", () => (move(), update()));
    return made;
  };
  let step = size;
  const back = button("previous", () => (first -= step)), next = button("next", () => (first += step));
  const all = button("all", () => ((step = step === size ? rows.length : size), (first = 0)));
  const states = new Map();
  for (const row of rows) {
    const badge = row.querySelector(".badge");
    if (badge) states.set(badge.textContent, (states.get(badge.textContent) || 0) + 1);
  }
  pager.append(shown, back, next, all);
  if (states.size > 1) {
    const filter = document.createElement("select");
    filter.setAttribute("aria-label", "State");
    filter.append(new Option("all states", ""), ...[...states].map(([state, count]) => new Option(`${count} ${state}`, state)));
    filter.addEventListener("change", () => {
      [wanted, first] = [filter.value, 0];
      update();
    });
    pager.append(filter);
  }
  update = () => {
    const kept = wanted ? rows.filter((row) => row.querySelector(".badge")?.textContent === wanted) : rows;
    const visible = new Set(kept.slice(first, first + step));
    rows.forEach((row) => (row.hidden = !visible.has(row)));
    shown.textContent = `rows ${kept.length ? first + 1 : 0} to ${Math.min(first + step, kept.length)} of ${kept.length}`;
    back.disabled = first === 0;
    next.disabled = first + step >= kept.length;
    all.textContent = step === size ? "all" : "pages";
  };
  table.parentElement.after(pager);
  update();
}

// A button to copy commands.
for (const commands of document.querySelectorAll("pre.commands")) {
  const button = document.createElement("button");
  button.className = "copy";
  button.type = "button";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    const text = commands.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(commands.querySelector("code"));
      button.textContent = "selected";
    }
    setTimeout(() => (button.textContent = "copy"), 1500);
  });
  commands.append(button);
}
