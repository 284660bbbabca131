// The list of conversations: search, open, rename, pin, delete, bring out and in.
//
// Runs as the `js_on_load` of a gr.HTML whose template never changes; `props.value` is what `shelf.py`
// makes. Text goes in as text, never as markup.

const root = element.querySelector(".shelf");
let open_menu = null;     // id of the conversation whose menu is open
let renaming = null;      // id of the one that gets another name
let deleting = null;      // id of the one that is asked about
let downloaded = null;

const value = () => latest(props.value) || { words: {}, entries: [] };
const say = (name) => value().words[name] || name;

const plain = (name, onclick, more = {}) => make("button", { type: "button", class: "plain", text: say(name), onclick, ...more });
const act = (action, more = {}) => {
  open_menu = renaming = deleting = null;
  if (action === "open" || action === "new") close_on_phone();
  trigger("select", { action, ...more });
};

// On a phone the list covers the conversation.
function close_on_phone() {
  const bar = element.closest(".sidebar");
  if (bar && bar.classList.contains("open") && window.innerWidth < 768) bar.querySelector(".toggle-button").click();
}

function menu(entry) {
  const kinds = [["zip", ".zip"], ["html", "HTML"], ["md", "Markdown"], ["ipynb", "Notebook"]];
  return make("div", { class: "menu", role: "group", "aria-label": entry.title },
    plain("rename", () => { open_menu = null; renaming = entry.id; draw(); }),
    plain(entry.pinned ? "unpin" : "pin", () => act("pin", { id: entry.id, pinned: !entry.pinned })),
    make("span", { class: "exports" }, make("span", { text: say("export") }),
      ...kinds.map(([kind, name]) => make("button", { type: "button", class: "plain", text: name,
        onclick: () => act("export", { id: entry.id, kind }) }))),
    plain("delete", () => { open_menu = null; deleting = entry.id; draw(); }, { class: "plain danger" }));
}

function name_field(entry) {
  const field = make("input", { type: "text", class: "rename", "aria-label": say("rename"), maxlength: 200 });
  field.value = entry.title;
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") act("rename", { id: entry.id, title: field.value });
    if (event.key === "Escape") { renaming = null; draw(); }
  });
  queueMicrotask(() => field.focus());
  return field;
}

function question(entry) {
  return make("div", { class: "menu", role: "alertdialog", "aria-label": say("really_delete") },
    make("p", { text: say("really_delete") }),
    plain("delete", () => act("delete", { id: entry.id }), { class: "plain danger" }),
    plain("cancel", () => { deleting = null; draw(); }));
}

function row(entry) {
  const shown = entry.id === value().shown;
  const title = make("button", { type: "button", class: "title", "aria-current": shown ? "true" : null,
    onclick: () => act("open", { id: entry.id }) },
    make("span", { text: (entry.pinned ? "★ " : "") + (entry.title || "…") }),
    entry.snippet && make("small", {}, ...entry.snippet.map((text, number) => make(number === 1 ? "mark" : "span", { text }))));
  const more = make("button", { type: "button", class: "tool", text: "⋯", title: say("more"), "aria-label": `${say("more")}: ${entry.title}`,
    "aria-expanded": String(open_menu === entry.id),
    onclick: () => { open_menu = open_menu === entry.id ? null : entry.id; deleting = renaming = null; draw(); } });
  return make("li", { class: shown ? "entry shown" : "entry" },
    make("div", { class: "line" }, renaming === entry.id ? name_field(entry) : title, more),
    open_menu === entry.id && menu(entry), deleting === entry.id && question(entry));
}

const fresh = make("button", { type: "button", class: "plain new", onclick: () => act("new") });
const search = make("input", { type: "search", class: "search" });
const list = make("ul", { class: "entries" });
const nothing = make("p", { class: "nothing" });
const notice = make("p", { class: "notice" });
const picker = make("input", { type: "file", hidden: true, accept: ".zip", tabindex: -1, "aria-hidden": "true", onchange: async () => {
  const [file] = picker.files;
  picker.value = "";
  if (file) act("import", { file: (await upload(file)).path });
} });
const bring_in = make("button", { type: "button", class: "plain", onclick: () => picker.click() });
const model_title = make("h1", {}), model_knows = make("p", {});
root.append(make("div", { id: "head" }, model_title, model_knows), fresh, search, list, nothing, notice, bring_in, picker);

let typed = null;
search.addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(() => trigger("select", { action: "search", query: search.value }), 250);
});

function draw() {
  const now = value();
  model_title.textContent = now.model ? now.model.title : "";
  model_knows.textContent = now.model ? now.model.knows : "";
  fresh.textContent = `+ ${say("new")}`;
  bring_in.textContent = say("bring_in");
  search.placeholder = say("search");
  search.setAttribute("aria-label", say("search"));
  list.setAttribute("aria-label", say("conversations"));
  list.replaceChildren(...now.entries.map(row));
  nothing.textContent = search.value && !now.entries.length ? say("nothing_found") : "";
  notice.textContent = now.notice || "";
  search.hidden = bring_in.hidden = !now.is_kept;
  if (now.download && now.download.number !== downloaded) {
    if (downloaded !== null || now.download.fresh) make("a", { href: now.download.url, download: now.download.name }).click();
    downloaded = now.download.number;
  }
}

watch("value", draw);
draw();
requestAnimationFrame(close_on_phone);
