// Draws the charts of a run's report, and has it printed whole.
(function () {
  "use strict";
  const { root, charts, color, drawn, begin } = shared;
  const curves = JSON.parse(document.getElementById("data").textContent);
  const number = (value) => {
    if (value === 0) return "0";
    if (Math.abs(value) < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
    const whole = Math.abs(value) >= 1000;
    return value.toLocaleString("en", whole ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 4 });
  };

  function line(label, points, name, style) {
    return {
      label, data: points.map(([x, y]) => ({ x, y })), borderColor: color(name), backgroundColor: color(name),
      borderWidth: 2, pointRadius: points.length < 3 ? 4 : 0, pointHoverRadius: 5, ...style,
    };
  }

  // Of each curve the point nearest to the pointer: validations are rare, and are shown with their own step.
  Chart.Interaction.modes.nearestOfEach = (chart, event) => chart.getSortedVisibleDatasetMetas().flatMap((meta) => {
    let best = null;
    meta.data.forEach((element, index) => {
      if (element.skip) return;
      if (!best || Math.abs(element.x - event.x) < Math.abs(best.element.x - event.x)) {
        best = { element, index, datasetIndex: meta.index };
      }
    });
    return best ? [best] : [];
  }).sort((a, b) => a.datasetIndex - b.datasetIndex);

  // A vertical rule under the pointer, and one at the best step.
  const rules = {
    id: "rules",
    afterDatasetsDraw(chart, _, options) {
      const hovered = chart.tooltip && chart.tooltip.getActiveElements()[0];
      if (hovered) rule(chart, hovered.element.x, color("quiet"), []);
      if (options.best == null) return;
      const x = chart.scales.x.getPixelForValue(options.best);
      rule(chart, x, color("validation"), [4, 4]);
      const { ctx, chartArea } = chart;
      const text = "best: step " + options.best.toLocaleString("en");
      const left = x + 6 + ctx.measureText(text).width > chartArea.right;
      ctx.save();
      ctx.fillStyle = color("validation");
      ctx.textAlign = left ? "right" : "left";
      ctx.textBaseline = "top";
      ctx.fillText(text, x + (left ? -6 : 6), chartArea.top + 2);
      ctx.restore();
    },
  };

  function rule(chart, x, stroke, dash) {
    const { ctx, chartArea } = chart;
    ctx.save();
    ctx.strokeStyle = stroke;
    ctx.setLineDash(dash);
    ctx.beginPath();
    ctx.moveTo(x, chartArea.top);
    ctx.lineTo(x, chartArea.bottom);
    ctx.stroke();
    ctx.restore();
  }

  // The last step is a tick of its own, whose number would lie over its neighbour's.
  function dropLast({ ticks }) {
    const count = ticks.length;
    if (count > 2 && ticks[count - 1].value - ticks[count - 2].value < ticks[1].value - ticks[0].value) ticks.pop();
  }

  function draw(id, datasets, options) {
    const canvas = document.getElementById(id);
    if (!canvas) return;
    if (charts.has(id)) charts.get(id).destroy();
    const text = { color: color("quiet"), maxRotation: 0 };
    const axis = { grid: { color: color("grid") }, border: { color: color("line") } };
    charts.set(id, new Chart(canvas, {
      type: "line",
      data: { datasets: datasets.filter((dataset) => dataset.data.length) },
      plugins: [rules],
      options: {
        animation: false, parsing: false, normalized: true, responsive: true, maintainAspectRatio: false,
        interaction: { mode: "nearestOfEach", intersect: false },
        scales: {
          x: {
            ...axis, type: "linear", bounds: "data", min: 0, afterBuildTicks: dropLast,
            ticks: { ...text, precision: 0, maxTicksLimit: 8 },
          },
          y: { ...axis, ...options.y, ticks: { ...text, maxTicksLimit: 7, callback: number } },
        },
        plugins: {
          rules: { best: options.best },
          legend: {
            display: datasets.length > 1, align: "start",
            labels: { color: color("text"), usePointStyle: true, pointStyle: "line", pointStyleWidth: 24 },
          },
          tooltip: {
            backgroundColor: color("text"), titleColor: color("paper"), bodyColor: color("paper"), usePointStyle: true,
            boxPadding: 4, padding: 10,
            callbacks: {
              title: (items) => (items.length ? "Step " + items[0].parsed.x.toLocaleString("en") : ""),
              label: (item) => {
                const { x, y } = item.parsed;
                const apart = item.chart.tooltip.dataPoints[0].parsed.x !== x;
                return " " + item.dataset.label + (apart ? ", step " + x.toLocaleString("en") : "") + ": " + number(y);
              },
            },
          },
        },
      },
    }));
  }

  const drawAll = () => drawn(() => {
    const log = document.getElementById("log");
    const marked = curves.validation.map(([step]) => (step === curves.best ? 6 : 3));
    draw("loss", [
      line("train, each step", curves.train, "raw", { borderWidth: 1, order: 3 }),
      line("train, smoothed", curves.smooth, "train", { order: 2 }),
      line("validation", curves.validation, "validation", { pointRadius: marked, order: 1 }),
    ], { best: curves.best, y: { type: log && log.checked ? "logarithmic" : "linear" } });
    draw("lr", [line("learning rate", curves.lr, "train")], { y: { beginAtZero: true } });
    draw("speed", [
      line("all tokens", curves.speed, "speed"),
      line("trained tokens", curves.trained_speed, "tuned", { borderDash: [6, 3] }),
    ], { y: { beginAtZero: true } });
  });

  function print(on) {
    root.classList.toggle("printing", on);
    drawAll();
    for (const details of document.querySelectorAll("details")) {
      if (on && !details.open) details.open = details.dataset.closed = true;
      else if (!on && details.dataset.closed) {
        details.open = false;
        delete details.dataset.closed;
      }
    }
  }

  begin(drawAll);
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
  const log = document.getElementById("log");
  if (log) log.addEventListener("change", drawAll);
})();
