// Chat with one model, or with two side by side. Talks to the server's own /v1 and keeps nothing but the settings.
import { render } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const FIELDS = ["system", "temperature", "top_p", "repetition_penalty", "max_tokens", "seed"];
const ALTERNATIVES = 5;
let models = [];
const panes = [];

// ---- the server ----

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function complaint(answer) {
  if (answer.status === 401) {
    $("key-row").hidden = false;
    show($("settings"), true);
  }
  const body = await answer.json().catch(() => null);
  return new Error(body?.error?.message ?? `the server answered ${answer.status}`);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let held = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split(/\r?\n\r?\n/);
    held = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function question(model, messages, seed) {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const common = {
    model: model.id, stream: true, stream_options: { include_usage: true }, temperature: number("temperature"), top_p: number("top_p"),
    repetition_penalty: number("repetition_penalty"), max_tokens: number("max_tokens"), seed: seed ?? number("seed"),
  };
  if (model.chat === false) {  // a base model goes on with the last message
    return ["v1/completions", { ...common, prompt: messages.at(-1).text, logprobs: ALTERNATIVES }];
  }
  const system = $("system").value.trim();
  const talk = messages.map(({ role, text }) => ({ role, content: text }));
  return ["v1/chat/completions", {
    ...common, messages: [...(system ? [{ role: "system", content: system }] : []), ...talk], logprobs: true, top_logprobs: ALTERNATIVES,
  }];
}

/** Text and tokens [{text, logprob, top: [[text, logprob]]}] of a piece, in either of the API's forms. */
function piece(choice) {
  if (choice.delta) {
    const tokens = (choice.logprobs?.content ?? []).map((one) => ({
      text: one.token, logprob: one.logprob, top: (one.top_logprobs ?? []).map((other) => [other.token, other.logprob]),
    }));
    return [choice.delta.content ?? "", tokens];
  }
  const odds = choice.logprobs;
  const tokens = (odds?.tokens ?? []).map((text, place) => ({
    text, logprob: odds.token_logprobs[place], top: Object.entries(odds.top_logprobs?.[place] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
  return [choice.text ?? "", tokens];
}

// ---- one column ----

class Pane {
  constructor() {
    this.messages = [];
    this.root = $("pane").content.firstElementChild.cloneNode(true);
    this.select = this.root.querySelector("select");
    this.talk = this.root.querySelector(".talk");
    for (const model of models) this.select.append(new Option(model.id, model.id));
    this.select.addEventListener("change", () => this.choose());
    this.choose();
    this.draw();
  }

  get model() { return models.find((model) => model.id === this.select.value) ?? models[0]; }

  choose() {
    const model = this.model, badge = this.root.querySelector(".licence"), terms = this.root.querySelector(".terms");
    badge.textContent = model ? `licence: ${model.license?.id ?? "none"}` : "";
    badge.title = model?.terms ?? "";
    terms.textContent = model?.terms ?? "";
    badge.onclick = () => show(terms, terms.hidden);
  }

  draw() {
    if (!this.messages.length) {
      const hint = document.createElement("li");
      hint.className = "empty";
      hint.textContent = this.model?.chat === false
        ? "This is a base model: it goes on with the text you give it." : "Nothing said yet.";
      this.talk.replaceChildren(hint);
      return;
    }
    this.talk.replaceChildren(...this.messages.map((message) => this.turn(message)));
    this.talk.scrollTop = this.talk.scrollHeight;
  }

  turn(message) {
    const node = document.createElement("li");
    node.className = `turn ${message.role}`;
    message.node = node;
    if (message.role === "user") node.textContent = message.text;
    else this.fill(message);
    return node;
  }

  fill(message) {
    const body = document.createElement("div");
    body.className = "body";
    if ($("probabilities").checked && message.tokens.length) {
      body.classList.add("tokens");
      body.append(...message.tokens.map(tokenNode));
    } else body.append(...render(message.text));
    if (message.busy) (body.lastElementChild ?? body).classList.add("waiting");
    message.node.replaceChildren(body, this.notes(message));
  }

  notes(message) {
    const line = document.createElement("div");
    line.className = "notes";
    if (message.error) {
      const error = document.createElement("span");
      error.className = "error";
      error.setAttribute("role", "alert");
      error.textContent = message.error;
      line.append(error);
    }
    if (message.busy) return line;
    const said = [];
    if (message.count) said.push(`${message.count} tokens`, `${(message.count / message.seconds).toFixed(1)} a second`);
    if (message.reason === "length") said.push("cut off at the most tokens");
    if (message.reason === "stopped") said.push("stopped");
    line.append(said.join(" · "));
    if (message === this.messages.at(-1)) {
      const again = document.createElement("button");
      again.type = "button";
      again.textContent = "Regenerate";
      again.addEventListener("click", () => this.again());
      line.append(again);
    }
    return line;
  }

  again() {
    this.messages.pop();
    this.answer(Math.floor(Math.random() * 2 ** 31));
  }

  ask(text) {
    this.messages.push({ role: "user", text });
    return this.answer();
  }

  async answer(seed) {
    const message = { role: "assistant", text: "", tokens: [], busy: true, count: 0 };
    const [path, body] = question(this.model, this.messages, seed);
    this.messages.push(message);
    this.draw();
    this.control = new AbortController();
    busy();
    const began = performance.now();
    let drawn = 0;
    try {
      const answer = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal: this.control.signal });
      if (!answer.ok) throw await complaint(answer);
      for await (const event of events(answer)) {
        if (event.error) throw new Error(event.error.message);
        if (event.usage) message.count = event.usage.completion_tokens;
        const choice = event.choices?.[0];
        if (!choice) continue;
        const [text, tokens] = piece(choice);
        message.text += text;
        message.tokens.push(...tokens);
        message.reason = choice.finish_reason ?? message.reason;
        if (performance.now() - drawn > 60) {  // drawing each token would cost more than making it
          const low = this.talk.scrollHeight - this.talk.scrollTop - this.talk.clientHeight < 80;
          this.fill(message);
          if (low) this.talk.scrollTop = this.talk.scrollHeight;
          drawn = performance.now();
        }
      }
    } catch (error) {
      if (error.name === "AbortError") message.reason = "stopped";
      else message.error = error.message;
    }
    message.seconds = (performance.now() - began) / 1000;
    message.count ||= message.tokens.length;
    message.busy = false;
    this.control = null;
    this.draw();
    busy();
  }
}

// ---- probabilities ----

const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣");
const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;

function tokenNode(token) {
  const node = document.createElement("span");
  node.className = "token";
  node.tabIndex = 0;
  node.textContent = token.text;
  node.style.setProperty("--p", Math.exp(token.logprob ?? -9).toFixed(3));
  const open = () => odds(node, token);
  node.addEventListener("mouseenter", open);
  node.addEventListener("focus", open);
  for (const name of ["mouseleave", "blur"]) node.addEventListener(name, () => $("odds")?.remove());
  return node;
}

function odds(node, token) {
  $("odds")?.remove();
  const box = document.createElement("div");
  box.id = "odds";
  const rows = token.top.some(([text]) => text === token.text) ? token.top : [...token.top, [token.text, token.logprob]];
  for (const [text, logprob] of rows) {
    const row = document.createElement("div"), name = document.createElement("code");
    name.textContent = visible(text);
    row.append(name, percent(logprob));
    row.classList.toggle("chosen", text === token.text);
    box.append(row);
  }
  document.body.append(box);
  const place = node.getBoundingClientRect(), size = box.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(place.left, innerWidth - size.width - 8))}px`;
  box.style.top = `${place.bottom + size.height + 12 > innerHeight ? place.top - size.height - 6 : place.bottom + 6}px`;
}

// ---- the page ----

function show(node, shown) {
  node.hidden = !shown;
  if (node === $("settings")) $("open-settings").setAttribute("aria-expanded", String(shown));
}

function busy() {
  const working = panes.some((pane) => pane.control);
  $("send").hidden = working;
  $("stop").hidden = !working;
}

function remember() {
  localStorage.setItem("herdbook-chat", JSON.stringify(Object.fromEntries(FIELDS.map((id) => [id, $(id).value]))));
}

function recall() {
  const kept = JSON.parse(localStorage.getItem("herdbook-chat") ?? "{}");
  for (const id of FIELDS) if (kept[id] !== undefined) $(id).value = kept[id];
  $("key").value = sessionStorage.getItem("herdbook-key") ?? "";
}

async function load() {
  try {
    const answer = await fetch("v1/models", { headers: headers() });
    if (!answer.ok) throw await complaint(answer);
    models = (await answer.json()).data;
    if (!panes.length) {
      panes.push(new Pane());
      $("panes").replaceChildren(panes[0].root);
    }
    $("compare").disabled = models.length < 2;
    $("compare").title = models.length < 2 ? "The server has one model; start it with two" : "";
  } catch (error) {
    const note = document.createElement("p");
    note.className = "empty error";
    note.setAttribute("role", "alert");
    note.textContent = error.message;
    $("panes").replaceChildren(note);
  }
}

function compare() {
  const both = panes.length === 1;
  if (both) {
    panes.push(new Pane());
    panes[1].select.value = models.find((model) => model.id !== panes[0].model.id).id;
    panes[1].choose();
    panes[1].draw();
    $("panes").append(panes[1].root);
  } else {
    panes.pop().control?.abort();
    $("panes").lastChild.remove();
  }
  $("compare").setAttribute("aria-pressed", String(both));
}

function send() {
  const text = $("message").value.trim();
  if (!text || !panes.length || panes.some((pane) => pane.control)) return;
  $("message").value = "";
  grow();
  for (const pane of panes) pane.ask(text);
}

function grow() {
  const box = $("message");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("message").addEventListener("input", grow);
$("stop").addEventListener("click", () => panes.forEach((pane) => pane.control?.abort()));
$("clear").addEventListener("click", () => panes.forEach((pane) => { pane.control?.abort(); pane.messages = []; pane.draw(); }));
$("compare").addEventListener("click", compare);
$("open-settings").addEventListener("click", () => show($("settings"), $("settings").hidden));
$("probabilities").addEventListener("change", () => panes.forEach((pane) => pane.draw()));
$("fields").addEventListener("change", remember);
$("fields").addEventListener("submit", (event) => event.preventDefault());
$("key").addEventListener("change", () => { sessionStorage.setItem("herdbook-key", $("key").value.trim()); load(); });
recall();
load();
