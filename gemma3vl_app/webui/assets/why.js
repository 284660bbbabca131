// Shows why a word of an answer is there: a panel below the answer whose word was clicked.
//
// `props.value` is what `why_view.py` makes; the words are drawn by conversation.js. The panel stays
// where it is while the conversation is drawn again, and goes when its answer does. Text goes in as
// text; what has not changed is not drawn again.

const SECOND_CLICK_MS = 250;  // two clicks in that time choose the word's text, as everywhere
const SIDES = [250, 170];     // the longer side of a picture that is alone, and of one among several

let open = null;      // the word that is asked about: where it stands, and the number of the request
let panel = null;
let parts = {};       // of the panel, by name
let known = {};       // what was found of that word, by method
let number = 0;
let clicked = 0;      // a timer
let left_at = 0;      // how far the conversation was scrolled for the panel
let watched = null;   // the conversation, while we look whether it is drawn again

const log = () => document.querySelector("#conversation .conversation");
const word_at = (target) => target instanceof Element ? target.closest("#conversation .word") : null;

// --- asking ---

// Ends the work on what is asked about; the server knows by the number what that is.
function leave() {
  if (open.running) trigger("leave", { number: open.number });
}

function ask(method) {
  if (known[method]) leave();  // else the server ends it for the next
  open.number = ++number;
  open.method = method;
  open.running = !known[method];
  if (known[method]) { show({ ...known[method], number }); return; }
  const before = open.text.slice(0, open.start);
  const start = [...before].length;  // characters as Python counts them
  trigger("explain", { number, method, index: open.index, word: open.word, start, stop: start + [...open.word].length });
}

function ask_about(word) {
  close();
  const article = word.closest(".message");
  open = { index: [...log().querySelectorAll(".message")].indexOf(article), branch: article.dataset.branch,
           start: Number(word.dataset.start), word: word.textContent, number: 0, running: true,
           text: article.querySelector(".text").textContent };
  if (watched !== log()) {
    watched = log();
    new MutationObserver(put).observe(watched, { childList: true });
  }
  put();
  ask("attention");
}

function close() {
  if (!open) return;
  const word = shown_word(), had_focus = panel && panel.contains(document.activeElement);
  leave();
  if (word) { word.classList.remove("asked"); word.removeAttribute("aria-expanded"); }
  if (panel) panel.remove();
  open = panel = null;
  known = {};
  if (word && had_focus) go_to(word);
}

// --- the word ---

function shown_word() {
  const article = log().querySelectorAll(".message")[open.index];
  if (!article || article.dataset.branch !== open.branch) return null;
  const word = article.querySelector(`.word[data-start="${open.start}"]`);
  return word && word.textContent === open.word ? word : null;
}

// Marks the word and puts the panel at its answer, also after that was drawn again.
function put() {
  if (!open) return;
  const word = shown_word();
  if (!word) { close(); return; }
  make_button(word);
  word.classList.add("asked");
  const text = word.closest(".text");
  if (panel && text.nextSibling !== panel) text.after(panel);
}

// One word of an answer is a button that Tab reaches: were all of them, nobody could listen to it.
function make_button(word) {
  for (const each of word.closest(".text").querySelectorAll(".word[role]")) {
    for (const name of ["tabindex", "role", "aria-expanded"]) each.removeAttribute(name);
  }
  word.tabIndex = 0;
  word.setAttribute("role", "button");
  if (is_asked(word)) word.setAttribute("aria-expanded", "true");
}

function go_to(word) {
  make_button(word);
  word.focus();
}

const is_asked = (word) => open !== null && shown_word() === word;
const turn = (word) => is_asked(word) ? close() : ask_about(word);

// Chrome selects no text from the beginning of what takes the focus on.
document.addEventListener("pointerdown", (event) => {
  const word = word_at(event.target);
  if (!word || !word.hasAttribute("tabindex")) return;
  word.removeAttribute("tabindex");
  setTimeout(() => { if (word.hasAttribute("role")) word.tabIndex = 0; });
});

document.addEventListener("click", (event) => {
  const word = word_at(event.target);
  clearTimeout(clicked);
  if (!word || event.detail > 1 || event.shiftKey || event.ctrlKey || event.metaKey) return;
  const unless_chosen = () => { if (getSelection().isCollapsed && word.isConnected) turn(word); };
  clicked = setTimeout(unless_chosen, event.detail ? SECOND_CLICK_MS : 0);
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && open && !event.isComposing && !event.target.closest?.(".editor, dialog")) close();
  const word = word_at(event.target);
  if (!word || event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) return;
  const all = [...word.closest(".text").querySelectorAll(".word")], at = all.indexOf(word);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (event.key === "Enter" || event.key === " ") turn(word);
  else if (all[next]) go_to(all[next]);
  else if (next === undefined) return;
  event.preventDefault();
});

// --- the panel ---

function fill(name, what, ...nodes) {
  const part = parts[name], key = JSON.stringify(what);
  if (part.key === key) return;
  part.key = key;
  const had_focus = part.node.contains(document.activeElement);
  part.node.replaceChildren(...nodes.flat().filter(Boolean));
  if (had_focus) panel.focus();
}

function begin(value) {
  parts = {};
  for (const name of ["head", "methods", "pictures", "says", "sure", "note", "exactly"])
    parts[name] = { node: make("div", { class: name }), key: null };
  panel = make("section", { class: "why-panel", role: "group", "aria-label": value.title, "aria-live": "off", tabindex: -1 },
    parts.head.node, parts.methods.node,
    make("div", { class: "found" }, parts.pictures.node, make("div", { class: "told" }, parts.says.node, parts.sure.node)),
    parts.note.node, parts.exactly.node);
  put();
}

function head(value) {
  const say = (name) => value.words[name];
  fill("head", value.title,
    make("strong", { text: value.title }),
    make("span", { class: "state", role: "status" }, make("span", { class: "bar", role: "progressbar", "aria-label": say("why_working") }, make("span")), make("span", { class: "line" })),
    make("button", { type: "button", class: "continue stop", text: say("stop"), onclick: leave }),
    make("button", { type: "button", class: "tool close", title: say("close"), "aria-label": say("close"), text: "×", onclick: close }));
  const bar = panel.querySelector("[role=progressbar]"), stop = panel.querySelector(".stop");
  const line = panel.querySelector(".line");
  const share = value.total && !value.is_over ? Math.round(100 * value.done / value.total) : null;
  bar.classList.toggle("unknown", share === null);
  bar.firstChild.style.width = share === null ? "" : `${share}%`;
  if (share === null) bar.removeAttribute("aria-valuenow"); else bar.setAttribute("aria-valuenow", share);
  bar.hidden = value.is_over;
  if (value.is_over && document.activeElement === stop) panel.focus();
  stop.hidden = value.is_over || value.method !== "occlusion";
  if (line.textContent !== value.line) line.textContent = value.line;
  line.classList.toggle("error", value.is_error);
}

function methods(value) {
  fill("methods", value.methods, value.methods.map(({ name, label, short }) =>
    make("button", { type: "button", class: "method", "data-name": name, onclick: () => { if (open.method !== name || !open.running) ask(name); } },
      make("span", { text: label }), make("small", { text: short }))));
  for (const each of panel.querySelectorAll(".method"))
    each.setAttribute("aria-pressed", String(each.dataset.name === value.method));
}

function pictures(value) {
  const longest = SIDES[value.pictures.length > 1 ? 1 : 0];
  const sizes = value.pictures.map(({ width, height }) => {
    const scale = longest / Math.max(width, height, 1);
    return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  });
  fill("pictures", sizes, sizes.map(([width, height]) => make("figure", {}, make("img", { width, height }),
    make("figcaption", {}), make("div", { class: "crops" }))));
  [...panel.querySelectorAll("figure")].forEach((figure, index) => {
    const shown = value.pictures[index], image = figure.querySelector("img");
    if (image.getAttribute("src") !== shown.url) image.src = shown.url;  // the old one is seen until the new one is there
    image.alt = shown.alt;
    figure.classList.toggle("unheated", !value.is_drawn);
    figure.querySelector("figcaption").textContent = shown.caption;
    figure.querySelector(".crops").replaceChildren(...shown.crops.map((url) => make("img", { src: url, alt: "" })));
  });
}

function sure(value) {
  if (!value.tokens.length && !value.is_error) return;  // those of the last method hold for the next
  const other = ({ text, percent }) => make("span", { class: "other" }, make("q", { text }), ` ${percent}`);
  fill("sure", value.tokens, value.tokens.length && make("strong", { text: value.words.why_sure }),
    value.tokens.map(({ text, percent, probability, others }) => make("div", { class: "choice" },
      make("div", { class: "chosen" }, make("q", { text }), make("span", { class: "bar" }, make("span", { style: `width: ${100 * probability}%` })),
        make("span", { text: percent })),
      others.length ? make("div", { class: "others" }, make("span", { text: `${value.words.why_instead}:` }), ...others.map(other)) : null)));
}

function show(value) {
  const fresh = !panel;
  if (fresh) begin(value);
  open.running = !value.is_over;
  head(value);
  methods(value);
  pictures(value);
  sure(value);
  fill("says", [value.says, value.effect], make("p", { text: value.says }), value.effect && make("p", { class: "effect", text: value.effect }));
  fill("note", value.note, value.note && make("p", { text: value.note }));
  fill("exactly", value.exactly, value.exactly &&
    make("details", {}, make("summary", { text: value.words.why_exactly }), make("p", { text: value.exactly, lang: "en" })));
  if (fresh || value.is_over) bring_into_view(fresh);
}

// All of the panel, or as much as there is room for below the word; not where somebody has scrolled.
function bring_into_view(fresh) {
  if (!fresh && log().scrollTop !== left_at) return;
  panel.scrollIntoView({ block: "nearest" });
  shown_word()?.scrollIntoView({ block: "nearest" });
  left_at = log().scrollTop;
}

function render() {
  const value = latest(props.value);
  if (!value || !open || value.number !== open.number) return;
  if (value.is_over && value.is_drawn) known[value.method] = value;
  show(value);
}

watch("value", render);
