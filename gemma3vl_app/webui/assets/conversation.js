// Draws a conversation, and says what a person does with its messages.
//
// Runs as the `js_on_load` of a gr.HTML whose template never changes: `props.value` is a
// conversation as `conversation_view.py` makes it. All text goes in as text, never as markup, so that
// nothing in it can load or run anything. Only what has changed is drawn again: selections, focus
// and pictures stay while an answer grows.

const log = element.querySelector(".conversation");
let drawn = [];      // per message: what was drawn, and its node
let editing = null;  // index of the message whose text is being changed
let edited = null;   // that text as it is by now

const say = (name) => (latest(props.value) && latest(props.value).words[name]) || name;

const button = (name, icon, onclick, more = {}) =>
  make("button", { type: "button", class: `tool ${name}`, title: say(name), "aria-label": say(name),
                   text: icon, onclick, ...more });

// --- one message ---

function picture(shown) {
  const image = make("img", { src: shown.url, alt: shown.name, loading: "lazy" });
  return make("a", { class: "picture", href: shown.url, target: "_blank", rel: "noopener noreferrer",
                     title: `${shown.name} · ${shown.width} × ${shown.height}` }, image);
}

function versions(message, index, idle) {
  if (message.versions < 2) return null;
  const turn = (step) => () => trigger("select", { action: "switch", index, version: message.version + step });
  return make("span", { class: "versions", role: "group", "aria-label": say("versions") },
    button("earlier", "‹", turn(-1), { disabled: !idle || message.version === 0 }),
    make("span", { text: `${message.version + 1} / ${message.versions}` }),
    button("later", "›", turn(1), { disabled: !idle || message.version === message.versions - 1 }));
}

function tools(message, index, value) {
  const idle = !value.answering, last = index === value.messages.length - 1;
  const row = make("div", { class: "tools" }, versions(message, index, idle));
  row.append(button("copy", "", () => navigator.clipboard.writeText(message.text)));
  if (message.role === "user") {
    row.append(button("edit", "", () => { editing = index; edited = null; render(); }, { disabled: !idle }));
    if (value.messages.findLastIndex((each) => each.role === "user") === index)
      row.append(button("undo", "", () => trigger("select", { action: "undo" }), { disabled: !idle }));
  }
  else if (last) {
    row.append(button("again", "", () => trigger("select", { action: "again" }), { disabled: !idle }));
    if (value.can_continue)
      row.append(make("button", { type: "button", class: "continue", text: say("go_on"),
                                  onclick: () => trigger("select", { action: "continue" }) }));
    if (can_be_explained(message, index, value)) row.append(make("span", { class: "hint", text: say("why_hint") }));
  }
  return row;
}

function editor(message, index) {
  const box = make("textarea", { class: "editor", rows: 3, "aria-label": say("edit") });
  box.value = edited === null ? message.text : edited;
  box.addEventListener("input", () => { edited = box.value; });
  const done = (send) => () => {
    editing = edited = null;
    render();
    if (send && box.value.trim() && box.value !== message.text)
      trigger("select", { action: "edit", index, text: box.value });
  };
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") done(false)();
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); done(true)(); }
  });
  queueMicrotask(() => box.focus());
  return make("div", { class: "editing" }, box, make("div", { class: "tools" },
    make("button", { type: "button", class: "continue", text: say("send"), onclick: done(true) }),
    make("button", { type: "button", class: "tool", text: say("cancel"), onclick: done(false) })));
}

// Returns what draws the message's text from one character to another: as it is, or token by token
// with how sure the model was of each; four steps of colour, and the other choices on hover.
function text_between(message, coloured) {
  if (!coloured) return (start, stop) => [document.createTextNode(message.text.slice(start, stop))];
  let stop = 0;
  const tokens = message.tokens.map(([text, probability, others]) =>
    ({ start: stop, stop: stop += text.length, class: `token sure-${Math.min(3, Math.floor(4 * probability))}`,
       title: [`${Math.round(100 * probability)} %`, ...others].join("\n") }));
  return (start, stop) => tokens.filter((each) => each.start < stop && each.stop > start).map((each) =>
    make("span", { class: each.class, title: each.title, tabindex: -1,
                   text: message.text.slice(Math.max(start, each.start), Math.min(stop, each.stop)) }));
}

// An answer's words can be clicked once it is finished: see why.js. They are found the browser's way,
// which knows languages without spaces. One of them is reached with Tab, the others from there.
const segmenter = new Intl.Segmenter(undefined, { granularity: "word" });

function words(message, between) {
  const nodes = [];
  let drawn_to = 0, first = true;
  for (const { segment, index: start } of segmenter.segment(message.text)) {
    if (!/[^\s\p{P}]/u.test(segment)) continue;
    const stop = start + segment.length;
    if (start > drawn_to) nodes.push(...between(drawn_to, start));
    nodes.push(make("span", { class: "word", "data-start": start, tabindex: first && 0,
                              role: first && "button" }, ...between(start, stop)));
    drawn_to = stop;
    first = false;
  }
  return [...nodes, ...between(drawn_to, message.text.length)];
}

const can_be_explained = (message, index, value) =>
  value.explains && message.role === "assistant" && !(value.answering && index === value.messages.length - 1);

function message_node(message, index, value) {
  const text = editing === index ? editor(message, index) : make("div", { class: "text", dir: "auto" });
  if (editing !== index) {
    const between = text_between(message, message.tokens && value.show_confidence);
    const whole = [0, message.text.length];
    text.append(...(can_be_explained(message, index, value) ? words(message, between) : between(...whole)));
  }
  return make("article", { class: `message ${message.role}`, "aria-label": say(message.role) },
    message.pictures.length ? make("div", { class: "pictures" }, ...message.pictures.map(picture)) : null,
    text,
    editing === index ? null : tools(message, index, value));
}

// --- before the first one ---

function welcome(value) {
  const cards = value.examples.map((example, index) =>
    make("button", { type: "button", class: "example", onclick: () => trigger("select", { action: "example", index }) },
      make("span", { class: "pictures" }, ...example.pictures.map((url) => make("img", { src: url, alt: "" }))),
      make("span", { text: example.question })));
  return make("div", { class: "welcome" }, make("p", { text: say("welcome") }), make("div", { class: "examples" }, ...cards));
}

// The address names the conversation, so that a reload shows it again.
function name_in_address(value) {
  const address = new URL(window.location.href);
  if (value.id && value.messages.length) address.searchParams.set("c", value.id);
  else address.searchParams.delete("c");
  if (address.href !== window.location.href) window.history.replaceState(null, "", address);
}

// --- all of them ---

// The end stays in sight where it was: also while the box below grows by a picture.
// Only who scrolls up leaves it: a window or a message that changes its size does not.
let at_end = true, last_top = 0;
log.addEventListener("scroll", () => {
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 80) at_end = true;
  else if (log.scrollTop < last_top) at_end = false;
  last_top = log.scrollTop;
});
new ResizeObserver(() => { if (at_end) log.scrollTop = log.scrollHeight; }).observe(log);

function render() {
  const value = latest(props.value);
  if (!value) return;
  if (editing !== null && (value.answering || editing >= value.messages.length)) editing = null;
  let branch = value.id;
  value.messages.forEach((message, index) => {
    const last = index === value.messages.length - 1;
    branch += `.${message.version}`;
    const key = JSON.stringify([message, editing === index, value.answering, value.show_confidence,
                                last && value.can_continue, last, value.explains, branch]);
    const before = drawn[index];
    if (before && before.key === key) return;
    const grows = before && value.answering && last && !message.tokens && before.role === message.role;
    if (grows && before.answering) {  // only its text: nothing else of it is drawn again
      before.node.querySelector(".text").textContent = message.text;
      before.key = key;
      return;
    }
    const node = message_node(message, index, value);
    node.dataset.branch = branch;
    if (before) before.node.replaceWith(node); else log.append(node);
    drawn[index] = { key, node, role: message.role, answering: value.answering };
  });
  drawn.splice(value.messages.length).forEach((each) => each.node.remove());
  const empty = value.messages.length === 0, greeting = log.querySelector(".welcome");
  if (empty && !greeting) log.append(welcome(value));
  else if (!empty && greeting) greeting.remove();
  name_in_address(value);
  log.setAttribute("aria-busy", String(Boolean(value.answering)));
  if (at_end) log.scrollTop = log.scrollHeight;
}

watch("value", render);
render();
