"use strict";
const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const columns = [...document.querySelectorAll(".column")];
let models = [], going = null, target = null;

const made = (name, text = "", kind = "") => {
  const element = document.createElement(name);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
};
const percent = (share) => (100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 2 : 1) + "%";

function headers() {
  const told = { "Content-Type": "application/json" };
  if ($("token").value) told.Authorization = "Bearer " + $("token").value;
  return told;
}

async function call(path, body, signal) {
  const how = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const answer = await fetch(path, { ...how, headers: headers(), signal });
  if (answer.status === 401) $("token-field").hidden = false;
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new Error(said?.error?.message ?? `the server answered with ${answer.status}`);
  }
  return answer;
}

// Models

async function list() {
  try {
    models = (await (await call("/v1/models")).json()).data;
  } catch (error) {
    $("status").textContent = error.message;
    root.dataset.state = "refused";
    return;
  }
  $("status").textContent = "";
  columns.forEach((column, side) => {
    const select = column.querySelector(".model"), before = select.value;
    select.replaceChildren(...models.map((model) => new Option(model.id, model.id)));
    const trained = models.find((model) => model.parent && model.can[0] !== "embed") ?? models.find((model) => model.parent);
    const first = side === 0 ? models.find((model) => model.id === trained?.parent) ?? models[0] : trained ?? models.at(-1);
    select.value = models.some((model) => model.id === before) ? before : first.id;
    describe(column);
  });
  await showRows();
  root.dataset.state = "ready";
}

const modelOf = (column) => models.find((model) => model.id === column.querySelector(".model").value);

function describe(column) {
  const model = modelOf(column);
  column.querySelector(".about").textContent =
    (model.parent ? `trained on ${model.parent}, ` : "a base, ") + "it " + model.can.map((can) => can + "s").join(", ").replace("classifys", "classifies");
}

async function showRows() {
  const run = columns.map(modelOf).reverse().find((model) => model.parent);
  const rows = run ? (await (await call("/playground/rows?model=" + encodeURIComponent(run.id))).json()).rows : [];
  $("rows-section").hidden = !rows.length;
  $("rows-of").textContent = run?.id ?? "";
  $("rows").replaceChildren(...rows.map((row) => {
    const button = made("button"), item = made("li");
    button.type = "button";
    button.append(made("span", row.prompt), made("span", row.target, "of"));
    button.querySelectorAll("span").forEach((part) => { part.dir = "auto"; });
    button.onclick = () => {
      document.querySelectorAll("#rows button").forEach((one) => one.removeAttribute("aria-current"));
      button.setAttribute("aria-current", "true");
      $("prompt").value = row.prompt;
      ask(row);
    };
    item.append(button);
    return item;
  }));
}

// Asking

async function ask(row = null) {
  const prompt = $("prompt").value;
  if (!prompt.trim() || !models.length) return;
  going?.abort();
  const mine = going = new AbortController();
  target = row?.target ?? null;
  $("target-section").hidden = target === null;
  $("target").textContent = target ?? "";
  $("where").textContent = row?.where ?? "";
  root.dataset.state = "busy";
  $("stop").disabled = false;
  $("status").textContent = "";
  await Promise.all(columns.map((column) => answer(column, prompt, mine.signal)));
  if (going === mine) {
    $("stop").disabled = true;
    root.dataset.state = "done";
  }
}

async function answer(column, prompt, signal) {
  const model = modelOf(column), place = column.querySelector(".answer"), told = column.querySelector(".told");
  place.replaceChildren();
  told.textContent = "";
  delete column.dataset.equal;
  column.dataset.state = "busy";
  const began = performance.now();
  try {
    if (model.can.includes("write")) await write(model, prompt, place, told, signal, began);
    else if (model.can.includes("classify")) await label(model, prompt, place, told, signal);
    else await embed(model, prompt, place, signal);
    if (target !== null && said(column) === target.trim()) {
      column.dataset.equal = "yes";
      told.textContent += " \u00b7 equals the target";
    }
  } catch (error) {
    if (signal.aborted) told.textContent += " stopped";
    else place.append(made("p", error.message, "error"));
  }
  column.dataset.state = "done";
}

const said = (column) => (column.querySelector(".bar.first b") ?? column.querySelector(".answer")).textContent.trim();

async function write(model, prompt, place, told, signal, began) {
  const messages = [{ role: "user", content: prompt }], system = $("system").value;
  if (system.trim()) messages.unshift({ role: "system", content: system });
  const body = {
    model: model.id, messages, temperature: +$("temperature").value, seed: +$("seed").value, max_tokens: +$("most").value,
    stream: true, stream_options: { include_usage: true }, logprobs: true, top_logprobs: 5,
  };
  const reader = (await call("/v1/chat/completions", body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "", first = 0, end = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices[0];
      if (choice?.delta.content) {
        first ||= performance.now();
        place.append(token(choice.delta.content, choice.logprobs?.content ?? []));
      }
      if (choice?.finish_reason === "length") end = ", cut at the limit";
      if (chunk.usage) {
        const seconds = (performance.now() - began) / 1000;
        told.textContent = `${chunk.usage.completion_tokens} tokens in ${seconds.toFixed(2)} s, ` +
          `the first after ${((first - began) / 1000).toFixed(2)} s${end}`;
      }
    }
  }
}

function token(text, scores) {
  const span = made("span", text, "token");
  if (scores.length) {
    const least = Math.min(...scores.map((score) => Math.exp(score.logprob)));
    span.dataset.sure = least > 0.8 ? 2 : least > 0.4 ? 1 : 0;
    span.dataset.p = least.toFixed(4);
    span.tabIndex = 0;
    span.scores = scores;
    span.onpointerenter = span.onfocus = () => tip(span);
    span.onpointerleave = span.onblur = () => { $("tip").hidden = true; };
  }
  return span;
}

function tip(span) {
  const parts = span.scores.flatMap((score) => {
    const shown = score.top_logprobs.some((one) => one.token === score.token) ? [] : [score];
    return [...score.top_logprobs, ...shown].map((one) => bar(JSON.stringify(one.token).slice(1, -1), Math.exp(one.logprob), one.token === score.token));
  });
  $("tip").replaceChildren(...parts);
  $("tip").hidden = false;
  const box = span.getBoundingClientRect(), own = $("tip").getBoundingClientRect();
  const below = box.bottom + own.height + 12 < innerHeight;
  $("tip").style.left = Math.max(8, Math.min(box.left, innerWidth - own.width - 8)) + "px";
  $("tip").style.top = (below ? box.bottom + 6 : Math.max(4, box.top - own.height - 6)) + "px";
}

function bar(name, share, first) {
  const row = made("div", "", first ? "bar first" : "bar"), rail = made("div", "", "rail-of"), filled = made("i");
  filled.style.width = 100 * share + "%";
  rail.append(filled);
  row.append(made("b", name), rail, made("span", percent(share)));
  return row;
}

async function label(model, prompt, place, told, signal) {
  const [first, second] = model.pairs ? prompt.split("\t") : [prompt];
  const found = await (await call("/v1/classify", { model: model.id, input: second === undefined ? first : [[first, second]] }, signal)).json();
  const one = found.data[0];
  if (one.values.length) place.append(made("p", one.values.map((value) => value.toPrecision(4)).join(", ")));
  else if (one.words.length) place.append(...one.words.map((word) => made("span", `${word.word}/${word.label} `, "token")));
  else {
    const ranked = Object.entries(one.probabilities).sort((a, b) => b[1] - a[1]);
    const chosen = one.label ? [one.label] : one.labels;
    place.append(...ranked.map(([name, share]) => bar(name, share, chosen.includes(name))));
  }
  told.textContent = `${found.usage.prompt_tokens} tokens read`;
}

async function embed(model, prompt, place, signal) {
  const found = await (await call("/v1/embeddings", { model: model.id, input: prompt.split("\n").filter((line) => line.trim()) }, signal)).json();
  const vectors = found.data.map((one) => one.embedding);
  const cosine = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  place.append(made("p", `${vectors.length} vector${vectors.length > 1 ? "s" : ""} of ${vectors[0].length} numbers`));
  vectors.slice(1).forEach((vector, i) => place.append(bar(`line 1 and ${i + 2}`, Math.max(0, cosine(vectors[0], vector)), i === 0)));
}

// What is done by hand

$("ask").onsubmit = (event) => { event.preventDefault(); ask(); };
$("stop").onclick = () => going?.abort();
$("temperature").oninput = () => { $("shown-temperature").textContent = $("temperature").value; };
$("token").onchange = () => list();
addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") { event.preventDefault(); ask(); }
  if (event.key === "Escape") going?.abort();
});
columns.forEach((column) => { column.querySelector(".model").onchange = () => { describe(column); showRows(); }; });
list();
