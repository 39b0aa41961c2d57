// What the scripts of all pages begin with. What they did stands in data attributes of <html>.
const shared = (function () {
  "use strict";
  const root = document.documentElement;
  const errors = [];
  window.addEventListener("error", (event) => {
    errors.push(event.message);
    root.dataset.errors = errors.join("\n");
  });
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const charts = new Map();
  const color = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();

  function measure() {
    root.dataset.width = String(root.clientWidth);
    root.dataset.overflow = String(root.scrollWidth - root.clientWidth);
  }

  // Has `paint` draw the charts in the colours of the scheme, and notes what there is now.
  function drawn(paint) {
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    Chart.defaults.font.size = 13;
    paint();
    root.dataset.chartsDrawn = String(charts.size);
    root.dataset.scheme = dark.matches ? "dark" : "light";
    measure();
  }

  async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source); // no access to the clipboard: one key press is left
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }

  // Draws for the first time, and follows the scheme, the width and the buttons from then on.
  function begin(drawAll) {
    root.dataset.errors = "";
    drawAll();
    dark.addEventListener("change", drawAll);
    window.addEventListener("resize", measure);
    for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
  }

  return { root, dark, charts, color, drawn, begin };
})();
