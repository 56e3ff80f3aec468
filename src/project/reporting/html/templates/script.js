"use strict";
// Conveniences: without them the page shows the same.

// Values under the pointer.
const tip = document.getElementById("tip");
for (const chart of document.querySelectorAll("svg.chart[data-lines]")) {
  const lines = JSON.parse(chart.dataset.lines);
  const [low, high, start, end] = JSON.parse(chart.dataset.frame);
  const cursor = chart.querySelector(".cursor");
  chart.addEventListener("pointermove", (event) => {
    const inside = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    const wanted = low + ((inside.x - start) / (end - start)) * (high - low);
    const near = (xs) => xs.reduce((best, x, i) => (Math.abs(x - wanted) < Math.abs(xs[best] - wanted) ? i : best), 0);
    const places = lines.map((line) => near(line.x));
    const distances = lines.map((line, i) => Math.abs(line.x[places[i]] - wanted));
    const first = distances.indexOf(Math.min(...distances));
    const x = lines[first].x[places[first]];
    tip.replaceChildren(`${chart.dataset.x} ${x}`);
    lines.forEach((line, i) => {
      const row = document.createElement("div"), dot = document.createElement("i");
      row.className = line.class;
      const y = line.y[places[i]];
      row.append(dot, `${line.name}: ${y === null ? "not finite" : y}`);
      tip.append(row);
    });
    const at = start + ((x - low) / (high - low)) * (end - start);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const right = event.clientX + 16 + box.width < innerWidth;
    tip.style.left = `${Math.max(4, right ? event.clientX + 16 : event.clientX - 16 - box.width)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 12, innerHeight - box.height - 4))}px`;
  });
  chart.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  });
}

// A click on a heading sorts; what has no value stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const sort = (heading, place) => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    const value = (row) => {
      const cell = row.cells[place];
      return cell.dataset.order !== undefined ? Number(cell.dataset.order) : cell.classList.contains("number") ? null : cell.textContent;
    };
    const rows = [...body.rows].map((row) => [value(row), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return down ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  };
  headings.forEach((heading, place) => {
    heading.tabIndex = 0;
    heading.addEventListener("click", () => sort(heading, place));
    heading.addEventListener("keydown", (event) => event.key === "Enter" && sort(heading, place));
  });
  table.classList.add("ready");
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
