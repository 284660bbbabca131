// The box to write in: text, pictures with what they would cost, and the buttons beside them.
//
// Runs as the `js_on_load` of a gr.HTML whose template never changes; `props.value` is what
// `composer.py` makes. Text goes in as text, never as markup. Nothing that a person has written is
// cleared here: only the server's word that it was sent does that.

const root = element.querySelector(".composer");
const state = { items: [], busy: 0, number: 0, draft: null, sending: null, sent: null, answering: false, crops: "auto" };

const value = () => latest(props.value) || { words: {}, presets: [], answering: false };
const say = (name) => value().words[name] || name;

const button = (name, icon, onclick, more = {}) =>
  make("button", { type: "button", class: "tool", title: say(name), "aria-label": say(name), text: icon, onclick, ...more });

// --- pictures ---

async function add(files) {
  for (const file of files) {
    const item = { name: file.name || "picture.png", pending: true };
    state.items.push(item);
    state.busy += 1;
    draw();
    try {
      Object.assign(item, await upload(file), { pending: false });
    } catch (error) {
      state.items.splice(state.items.indexOf(item), 1);
      show_error(`${item.name}: ${say("not_taken")}`);
    }
    state.busy -= 1;
  }
  weigh();
}

function weigh() {
  draw();
  if (state.busy) return;  // the last upload weighs all of them
  clearTimeout(typed);  // or what is told of a file would be gone before it is read
  trigger("weigh", { number: ++state.number, ...draft(), crops: state.crops });
}

const draft = () => ({ text: box.value, files: state.items.filter((item) => item.path).map((item) => item.path) });

function move(index, step) {
  const [item] = state.items.splice(index, 1);
  state.items.splice(index + step, 0, item);
  weigh();
  const moved = strip.children[index + step];
  const again = moved && moved.querySelector(step < 0 ? ".left" : ".right");
  if (again) again.focus();
}

function remove(index) {
  state.items.splice(index, 1);
  weigh();
  box.focus();
}

// Crops are drawn where the model will look again, in parts of the picture.
function boxes(item) {
  return (item.crops || []).map(([left, top, right, bottom]) => make("span", { class: "crop",
    style: `left:${100 * left / item.width}%;top:${100 * top / item.height}%;` +
           `width:${100 * (right - left) / item.width}%;height:${100 * (bottom - top) / item.height}%` }));
}

function enlarge(item) {
  const dialog = make("dialog", { class: "enlarged", "aria-label": item.name },
    make("div", { class: "frame" }, make("img", { src: item.url, alt: item.name }), ...boxes(item)),
    make("p", { text: cost(item) }),
    make("button", { type: "button", class: "plain", text: say("close"), onclick: () => dialog.close() }));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  root.append(dialog);
  dialog.showModal();
}

const cost = (item) => item.pending || !item.width ? "…" :
  `${item.width} × ${item.height} · ${item.tokens} ${say("tokens")}` + (item.squashed ? ` · ${say("squashed")}` : "");

function thumbnail(item, index) {
  const last = index === state.items.length - 1;
  const node = make("li", { class: item.squashed ? "item squashed" : "item", draggable: true },
    make("button", { type: "button", class: "thumb", title: item.name, "aria-label": item.name, onclick: () => item.url && enlarge(item) },
      item.url ? make("img", { src: item.url, alt: "" }) : make("span", { text: "…" }), ...boxes(item)),
    make("span", { class: "name", text: item.name }),
    make("span", { class: "cost", text: cost(item) }),
    make("span", { class: "moves" },
      index > 0 && button("move_left", "‹", () => move(index, -1), { class: "tool left" }),
      !last && button("move_right", "›", () => move(index, 1), { class: "tool right" }),
      button("remove", "×", () => remove(index))));
  node.addEventListener("dragstart", (event) => event.dataTransfer.setData("text/x-item", String(index)));
  node.addEventListener("dragover", (event) => event.preventDefault());
  node.addEventListener("drop", (event) => {
    const from = event.dataTransfer.getData("text/x-item");
    if (from === "") return;
    event.preventDefault();
    event.stopPropagation();
    move(Number(from), index - Number(from));
  });
  return node;
}

// --- the camera ---

async function camera() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    show_error(say("no_camera"));
    return;
  }
  const video = make("video", { autoplay: true, playsinline: true, muted: true });
  video.muted = true;
  video.srcObject = stream;
  const take = () => {
    const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => add([new File([blob], "camera.png", { type: "image/png" })]), "image/png");
    dialog.close();
  };
  const dialog = make("dialog", { class: "enlarged", "aria-label": say("webcam") }, video,
    make("div", { class: "row" },
      make("button", { type: "button", class: "plain", text: say("take"), onclick: take }),
      make("button", { type: "button", class: "plain", text: say("cancel"), onclick: () => dialog.close() })));
  dialog.addEventListener("close", () => { stream.getTracks().forEach((track) => track.stop()); dialog.remove(); });
  root.append(dialog);
  dialog.showModal();
}

// --- sending ---

function send() {
  if (value().answering || state.busy || state.sending) return;
  state.sending = setTimeout(() => { state.sending = null; draw(); }, 10000);  // no word: it may be tried again
  state.sent = draft();
  trigger("submit", { ...state.sent, crops: state.crops });
  draw();
}

// The server has what was sent. What was written since stays.
function clear_what_was_sent() {
  if (!state.sent) return;  // another conversation is shown: the draft goes along
  const { text, files } = state.sent;
  state.sent = null;
  if (box.value === text) box.value = "";
  else if (text && box.value.startsWith(text)) box.value = box.value.slice(text.length).trimStart();
  state.items = state.items.filter((item) => !files.includes(item.path));
}

// A draft comes back: it was refused, or taken back. What was written since stays behind it.
function put_back(draft) {
  state.sent = null;
  if (!box.value.startsWith(draft.text)) box.value = [draft.text, box.value].filter(Boolean).join("\n");
  const here = state.items.filter((item) => !draft.items.some((each) => each.path === item.path));
  state.items = [...draft.items, ...here];
}

function show_error(text) {
  note.textContent = text;
  note.hidden = !text;
}

// --- what is kept in this tab while the page is loaded anew, also by itself after a lost network ---

const KEPT = "gemma3vl-draft";
let kept = null;  // what a former page of this tab had in its box, until the server has been heard

function keep() {
  const items = state.items.filter((item) => item.path);
  const whole = { text: box.value, items, sent: Boolean(state.sending) };
  try { sessionStorage.setItem(KEPT, JSON.stringify(whole)); } catch { /* full, or forbidden: nothing is kept */ }
}

function take_up() {
  try { kept = JSON.parse(sessionStorage.getItem(KEPT)); } catch { kept = null; }
  if (!kept || typeof kept.text !== "string" || !Array.isArray(kept.items)) { kept = null; return; }
  box.value = kept.text;
  state.items = kept.items;
}

// It had been sent, and had arrived: it stands in the conversation already.
function forget_what_arrived(now) {
  if (kept && kept.sent && kept.text && now.asked === kept.text.trim() && box.value === kept.text) {
    box.value = "";
    state.items = [];
  }
  kept = null;
}

// --- the parts ---

const picker = make("input", { type: "file", multiple: true, hidden: true, accept: "image/*,.pdf,.heic,.avif", "aria-hidden": "true", tabindex: -1,
                               onchange: () => { add([...picker.files]); picker.value = ""; } });
const strip = make("ul", { class: "strip" });
const note = make("p", { class: "note", role: "alert", hidden: true });
const box = make("textarea", { rows: 1, maxlength: 1000000 });
const attach = button("attach", "", () => picker.click(), { class: "tool attach" });
const shoot = button("webcam", "", camera, { class: "tool webcam" });
const presets = make("select", { class: "presets", onchange: () => {
  const chosen = value().presets[presets.selectedIndex - 1];
  if (!chosen) return;
  presets.selectedIndex = 0;
  const own = value().presets.some((preset) => preset.text && preset.text.trim() === box.value.trim()) ? "" : box.value;
  if (chosen.text) box.value = own ? `${chosen.text.trimEnd()} ${own}` : chosen.text;
  trigger("preset", { key: chosen.key });  // the schema in the settings goes with it
  grow();
  weigh();
  box.focus();
} });
const crops = make("select", { class: "crops", onchange: () => { state.crops = crops.value; weigh(); } });
const meter = make("span", { class: "meter" }, make("span", { class: "bar" }, make("span", { class: "fill" })), make("span", { class: "of" }));
const go = make("button", { type: "button", class: "send", onclick: send });
const halt = make("button", { type: "button", class: "stop", onclick: () => trigger("halt", {}) });
root.append(strip, note, box, make("div", { class: "row" }, attach, shoot, presets, crops, make("span", { class: "room" }), meter, go, halt), picker);

function grow() {
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, 0.35 * window.innerHeight)}px`;
}

let typed = null;
box.addEventListener("input", () => {
  grow();
  keep();
  clearTimeout(typed);
  typed = setTimeout(weigh, 600);  // the meter counts the words, too, but not at every key
});
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  if (event.key === "Escape" && value().answering) trigger("halt", {});
});
box.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) { event.preventDefault(); add(files); }
});
const has_files = (event) => [...(event.dataTransfer ? event.dataTransfer.types : [])].includes("Files");
document.addEventListener("dragover", (event) => { if (has_files(event)) { event.preventDefault(); root.classList.add("dropping"); } });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) root.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  root.classList.remove("dropping");
  if (has_files(event)) { event.preventDefault(); add([...event.dataTransfer.files]); }
});

function options(select, first, names) {
  const wanted = [first, ...names].join("\n");
  if (select.dataset.shown === wanted) return;
  select.dataset.shown = wanted;
  select.replaceChildren(...(first ? [make("option", { text: first, value: "" })] : []),
    ...names.map(([key, name]) => make("option", { text: name, value: key })));
}

function draw() {
  keep();
  const now = value();
  strip.replaceChildren(...state.items.map(thumbnail));
  strip.hidden = state.items.length === 0;
  strip.setAttribute("aria-label", say("pictures"));
  box.placeholder = say("placeholder");
  box.setAttribute("aria-label", say("placeholder"));
  options(presets, say("presets"), now.presets.map((preset) => [preset.key, preset.name]));
  presets.setAttribute("aria-label", say("presets"));
  options(crops, "", [["auto", say("crops_auto")], ["on", say("crops_on")], ["off", say("crops_off")]]);
  crops.value = state.crops;
  crops.setAttribute("aria-label", say("crops"));
  crops.title = say("crops");
  for (const [node, name] of [[attach, "attach"], [shoot, "webcam"]]) {
    node.title = say(name);
    node.setAttribute("aria-label", say(name));
  }
  attach.hidden = shoot.hidden = crops.hidden = !now.takes_pictures;
  shoot.hidden = shoot.hidden || !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
  go.hidden = now.answering;
  go.disabled = Boolean(state.busy || state.sending);
  halt.hidden = !now.answering;
  for (const [node, name] of [[go, "send"], [halt, "stop"]]) { node.textContent = say(name); }
  const weighed = now.weighed;
  meter.hidden = !weighed || !weighed.context_tokens;
  if (!meter.hidden) {
    const share = weighed.used_tokens / weighed.context_tokens;
    meter.querySelector(".fill").style.width = `${Math.min(100, 100 * share)}%`;
    meter.classList.toggle("full", share > 0.9);
    meter.querySelector(".of").textContent = `${weighed.used_tokens.toLocaleString()} / ${weighed.context_tokens.toLocaleString()} ${say("tokens")}`;
    meter.title = say("context");
  }
}

function renewed() {
  const now = value();
  forget_what_arrived(now);
  const has_ended = state.answering && !now.answering;
  let is_new = state.number === 0 || has_ended;  // for the meter
  if (now.draft && now.draft.number !== state.draft) {  // sent, or given back
    state.draft = now.draft.number;
    state.number += 1;  // what was asked about the draft before is out of date
    if (now.draft.text || now.draft.items.length) put_back(now.draft);
    else clear_what_was_sent();
    show_error("");
    grow();
    clearTimeout(typed);
    is_new = !now.answering;
  } else if (now.weighed && state.number > 0 && now.weighed.number === state.number && !state.busy) {
    if (now.weighed.items) state.items = now.weighed.items;
    show_error(now.weighed.error);
  }
  state.answering = now.answering;
  clearTimeout(state.sending);
  state.sending = null;
  if (is_new) weigh(); else draw();
}

watch("value", renewed);
take_up();
draw();
grow();
box.focus();
