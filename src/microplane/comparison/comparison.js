// Sorts the tables, draws the charts, shows the answers to a row, and gives the figures away as files.
(function () {
  "use strict";
  const { root, dark, charts, color, drawn, begin } = shared;
  const result = JSON.parse(document.getElementById("data").textContent);
  // Of a comparison its methods, else runs; what was scored on the same rows stands in the charts and above the answers.
  const all = (result.methods || result.runs).map((row) => ({ ...row, name: row.method !== undefined && !row.run ? row.method : row.run }));
  const scoredRows = all.filter((row) => row.score);
  const names = scoredRows.map((row) => row.name);
  const ink = (name) => {
    const place = [...all, ...(result.failed || []).map((row) => ({ name: row.method }))].findIndex((row) => row.name === name);
    return `hsl(${(place * 137.5 + 210) % 360} 62% ${dark.matches && !root.classList.contains("printing") ? 66 : 38}%)`;
  };
  const digits = (value) => (value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e9)
    ? value.toLocaleString("en", { maximumSignificantDigits: Math.abs(value) < 1e4 ? 4 : 6 }) : value.toExponential(1).replace(".0e", "e"));
  const scored = (value) => (result.metric.share ? (100 * value).toFixed(1) + "%" : digits(value));
  const SCALES = { peak_memory_bytes: [1e9, " GB"], trainable_parameters: [1, ""], seconds: [1, " s"] };

  // Tables

  function sort(button) {
    const head = button.closest("th"), table = head.closest("table"), column = head.cellIndex;
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    for (const opened of body.querySelectorAll("tr.opened")) opened.remove();
    const key = (row) => row.cells[column].dataset.sortValue ?? "";
    const order = (one, other) => {
      const a = key(one), b = key(other);
      if (a === "" || b === "") return (a === "") - (b === "");  // what has no figure stays below
      const found = isNaN(a) || isNaN(b) ? a.localeCompare(b) : Number(a) - Number(b);
      return down ? -found : found;
    };
    body.append(...[...body.rows].sort(order));
  }

  function element(kind, text, style) {
    const made = document.createElement(kind);
    if (text !== undefined) made.textContent = text;
    if (style) made.className = style;
    return made;
  }

  function fillRows() {
    const table = document.getElementById("answers");
    if (!table) return;
    const share = result.metric.share, body = table.tBodies[0];
    result.rows.forEach((line, number) => {
      const row = element("tr", undefined, "row");
      row.tabIndex = 0;
      row.dataset.row = number;
      const text = element("td", line.prompt.trim() || line.where, "text");
      text.dir = "auto";
      text.dataset.sortValue = number;
      row.append(text);
      for (const name of names) {
        const score = line.scores[name];
        const sign = share && score === 1 ? "✓" : share && score === 0 ? "✗" : share ? scored(score) : digits(score);
        const cell = element("td", sign, share ? (score >= 0.5 ? "right" : "wrong") : "");
        cell.dataset.sortValue = score;
        row.append(cell);
      }
      row.addEventListener("click", () => toggle(row, line));
      row.addEventListener("keydown", (event) => { if (event.key === "Enter") toggle(row, line); });
      body.append(row);
    });
  }

  function toggle(row, line) {
    if (row.nextElementSibling && row.nextElementSibling.classList.contains("opened")) {
      row.nextElementSibling.remove();
      return;
    }
    const opened = element("tr", undefined, "opened"), cell = element("td");
    cell.colSpan = names.length + 1;
    const prompt = element("pre", line.prompt);
    prompt.dir = "auto";
    const outputs = element("div", undefined, "outputs");
    const shown = [["target", line.target], ["untouched model", line["untouched model"]],
      ...Object.entries(line.answers), ...Object.entries(line.trivial)].filter(([, text]) => text !== undefined);
    for (const [name, text] of shown) {
      const output = element("div", undefined, "output" + (text.trim() === line.target.trim() ? " equal" : ""));
      const answer = element("pre", text || "(empty)");
      answer.dir = "auto";
      output.append(element("h4", name), answer);
      outputs.append(output);
    }
    cell.append(element("p", line.where, "where"), prompt, outputs);
    opened.append(cell);
    row.after(opened);
  }

  // Charts

  // Of a logarithmic axis the powers of ten, where there are two: what lies between would touch them on a telephone.
  function powersOfTen(axis) {
    const powers = axis.ticks.filter(({ value }) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6);
    if (powers.length > 1) axis.ticks = powers;
  }

  function draw(id, datasets, x, y, label) {
    const canvas = document.getElementById(id);
    if (!canvas) return;
    if (charts.has(id)) charts.get(id).destroy();
    const axis = { grid: { color: color("grid") }, border: { color: color("line") } };
    const ticks = { color: color("quiet"), maxRotation: 0, maxTicksLimit: 7 };
    const title = (text) => ({ display: true, text, color: color("quiet") });
    charts.set(id, new Chart(canvas, {
      type: "line",
      data: { datasets },
      options: {
        animation: false, parsing: false, responsive: true, maintainAspectRatio: false,
        interaction: { mode: "nearest", intersect: false },
        scales: {
          x: {
            ...axis, type: x.type, title: title(x.title), ticks: { ...ticks, callback: x.say },
            ...(x.type === "logarithmic" && { afterBuildTicks: powersOfTen }),
          },
          y: { ...axis, type: y.type || "linear", title: title(y.title), ticks: { ...ticks, callback: y.say } },
        },
        plugins: {
          legend: { align: "start", labels: { color: color("text"), usePointStyle: true } },
          tooltip: {
            backgroundColor: color("text"), titleColor: color("paper"), bodyColor: color("paper"), padding: 10,
            callbacks: { title: () => "", label },
          },
        },
      },
    }));
  }

  function pareto() {
    if (!document.getElementById("cost")) return;
    const cost = document.getElementById("cost").value, [unit, name] = SCALES[cost];
    const title = document.getElementById("cost").selectedOptions[0].textContent;
    const points = scoredRows.map((row) => ({ x: row[cost] / unit, y: row.score.value, row }));
    const better = result.metric.lower_is_better ? (a, b) => a < b : (a, b) => a > b;
    let best = null;
    const front = [...points].sort((a, b) => a.x - b.x || (better(a.y, b.y) ? -1 : 1)).filter((point) => {
      const kept = best === null || better(point.y, best);
      if (kept) best = point.y;
      return kept;
    });
    const one = (point) => ({
      label: point.row.name, data: [{ x: point.x, y: point.y }], pointRadius: 6, pointHoverRadius: 8,
      borderColor: ink(point.row.name), backgroundColor: ink(point.row.name), pointStyle: "circle",
    });
    const line = {
      label: "none is better and cheaper", data: front.map(({ x, y }) => ({ x, y })), pointRadius: 0, borderWidth: 2,
      borderColor: color("quiet"), backgroundColor: color("quiet"), borderDash: [5, 4], stepped: "before", pointStyle: "line",
    };
    const say = (value) => digits(value) + name;
    const log = cost === "trainable_parameters" && points.every((point) => point.x > 0);
    draw("pareto", [...points.map(one), line], { type: log ? "logarithmic" : "linear", title, say },
      { title: result.metric.name, say: scored },
      (item) => ` ${item.dataset.label}: ${scored(item.parsed.y)}, ${say(item.parsed.x)}`);
    root.dataset.front = JSON.stringify(front.map((point) => point.row.name));
  }

  function rates() {
    if (!result.search) return;
    const sets = Object.entries(result.search).map(([name, found]) => {
      const points = found.points.filter((point) => point.stage === "short" && point.validation_loss !== null)
        .sort((a, b) => a.lr - b.lr);
      const flagged = (point) => found.edge && point.lr === found.taken;
      return {
        label: name + (found.edge ? " (edge)" : ""), data: points.map((point) => ({ x: point.lr, y: point.validation_loss })),
        borderColor: ink(name), backgroundColor: ink(name), borderWidth: 2,
        pointRadius: points.map((point) => (flagged(point) ? 8 : point.lr === found.taken ? 6 : 3)),
        pointStyle: points.map((point) => (flagged(point) ? "triangle" : "circle")),
      };
    });
    draw("rates", sets, { type: "logarithmic", title: "learning rate", say: (value) => value.toExponential(0) },
      { title: "validation loss", say: digits },
      (item) => ` ${item.dataset.label}, ${item.parsed.x}: ${digits(item.parsed.y)}`);
  }

  function curves() {
    const sets = Object.entries(result.curves).map(([name, points]) => ({
      label: name, data: points.map(([x, y]) => ({ x, y })), borderColor: ink(name), backgroundColor: ink(name),
      borderWidth: 2, pointRadius: 2,
    }));
    const axis = document.getElementById("curves").dataset.axis;
    draw("curves", sets, { type: "linear", title: axis, say: (value) => value.toLocaleString("en") },
      { title: "validation loss", say: digits },
      (item) => ` ${item.dataset.label}, ${item.parsed.x.toLocaleString("en")} ${axis}: ${digits(item.parsed.y)}`);
  }

  function learning() {
    const found = result.learning_curve;
    if (!found || !found.twice) return;
    const quiet = { borderColor: color("quiet"), backgroundColor: color("quiet"), borderWidth: 2 };
    const mean = found.points.map((point) => ({ x: point.rows, y: point.value }));
    const seeds = found.points.flatMap((point) => point.by_seed.map((y) => ({ x: point.rows, y })));
    const sets = [
      { label: "mean of the seeds", data: mean, showLine: false, pointRadius: 6, borderColor: ink(found.method), backgroundColor: ink(found.method) },
      { label: "seeds", data: seeds, showLine: false, pointRadius: 2, ...quiet },
      { label: "fit", data: found.fit.line.map(([x, y]) => ({ x, y })), pointRadius: 0, borderDash: [5, 4], ...quiet },
      { label: "95% interval", data: found.twice.between.map((y) => ({ x: found.twice.rows, y })), pointRadius: 5, pointStyle: "line", ...quiet },
    ];
    const count = (value) => Math.round(value).toLocaleString("en");
    draw("learning", sets, { type: "logarithmic", title: "training rows", say: count }, { title: result.metric.name, say: scored },
      (item) => ` ${item.dataset.label}, ${count(item.parsed.x)} rows: ${scored(item.parsed.y)}`);
  }

  const drawAll = () => drawn(() => {
    learning();
    pareto();
    rates();
    curves();
  });

  // Files

  function download(kind) {
    const csv = kind === "csv";
    const text = csv ? JSON.parse(document.getElementById("csv").textContent) : JSON.stringify(result, null, 2) + "\n";
    const link = element("a");
    link.download = (result.methods ? "comparison." : "side-by-side.") + kind;
    link.href = URL.createObjectURL(new Blob([text], { type: csv ? "text/csv" : "application/json" }));
    link.click();
    root.dataset.downloaded = kind + " " + text.length;
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  fillRows();
  begin(drawAll);
  document.getElementById("cost")?.addEventListener("change", pareto);
  for (const button of document.querySelectorAll("[data-sort]")) button.addEventListener("click", () => sort(button));
  for (const button of document.querySelectorAll("[data-download]")) {
    button.addEventListener("click", () => download(button.dataset.download));
  }
})();
