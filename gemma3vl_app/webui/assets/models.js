// The models: what fits here and why, as bars by device; loading and unloading.
//
// Runs as the `js_on_load` of a gr.HTML whose template never changes; `props.value` is what
// `models.py` makes. Text goes in as text, never as markup.

const root = element.querySelector(".models");
const wishes = {};  // precision by model, as chosen here

const value = () => latest(props.value);
const say = (name) => (value() && value().words[name]) || name;

const plain = (name, onclick, more = {}) => make("button", { type: "button", class: "plain", text: say(name), onclick, ...more });
const gib = (bytes) => `${(bytes / 2 ** 30).toFixed(bytes < 2 ** 30 ? 2 : 1)} GiB`;
const act = (action, name) => trigger("select", { action, name, weights: wishes[name] || "auto", wishes });

function bar(each) {
  const whole = Math.max(each.limit, each.total) || 1;
  const text = each.limit ? `${each.device}: ${gib(each.total)} / ${gib(each.limit)}` : `${each.device}: ${gib(each.total)}`;
  return make("div", { class: each.limit && each.total > each.limit ? "plan over" : "plan" },
    make("div", { class: "stack", role: "img", "aria-label": text },
      ...each.parts.map((part) => make("span", { class: `part ${part.name}`, style: `width:${100 * part.bytes / whole}%`,
                                                 title: `${say(`part_${part.name}`)}: ${gib(part.bytes)}` }))),
    make("span", { text }));
}

function model(each) {
  const precision = make("select", { "aria-label": `${say("precision")}: ${each.name}`,
    onchange: (event) => { wishes[each.name] = event.target.value; act("plan", each.name); } },
    ...value().weights.map((name) => make("option", { text: name, value: name, selected: name === each.weights })));
  const state = each.current ? say("in_use") : each.state === "ready" ? say("loaded") : each.state ? "…" : each.fits ? say("fits") : say("does_not_fit");
  const stored = each.stored ? `${each.stored} · ${each.dtype} · ${each.context_tokens.toLocaleString()} ${say("tokens")}` : "";
  return make("li", { class: each.current ? "model current" : "model" },
    make("div", { class: "line" },
      make("strong", { text: each.title }),
      make("span", { class: `state ${each.state ? "here" : each.fits ? "fits" : "over"}`, text: state })),
    make("p", { text: each.knows }),
    make("p", { class: "small", text: [each.parameters ? `${(each.parameters / 1e9).toFixed(1)} B` : "", stored,
                                       each.memory ? `${say("memory")}: ${gib(each.memory)}` : ""].filter(Boolean).join(" · ") }),
    ...each.bars.map(bar),
    each.adapters.length > 0 && make("p", { class: "small", text: `${say("adapter")}: ${each.adapters.join(", ")}` }),
    make("details", {}, make("summary", { text: say("why") }), make("ul", {}, ...each.reasons.map((text) => make("li", { text })))),
    value().may_change && make("div", { class: "row" },
      !each.state && precision,
      !each.current && each.state !== "loading" && plain("use", () => act("use", each.name), { disabled: !each.fits }),
      each.state === "ready" && !each.current && plain("unload", () => act("unload", each.name))),
    each.current && value().may_change && value().any_source &&
      written("add_adapter", "add", (text) => trigger("select", { action: "adapter", text, wishes })));
}

// A field to write something into, and the button that does it.
function written(hint, name, then) {
  const field = make("input", { type: "text", class: "source", placeholder: say(hint), "aria-label": say(hint) });
  const go = () => field.value.trim() && then(field.value.trim());
  field.addEventListener("keydown", (event) => { if (event.key === "Enter") go(); });
  return make("div", { class: "row" }, field, plain(name, go));
}

function draw() {
  if (!value()) return;
  const open = new Set([...root.querySelectorAll("details[open]")].map((each) => each.closest("li").dataset.name));
  const list = make("ul", { class: "list", "aria-label": say("models") }, ...value().models.map((each) => {
    const node = model(each);
    node.dataset.name = each.name;
    if (open.has(each.name)) node.querySelector("details").open = true;
    return node;
  }));
  root.replaceChildren(make("p", { class: "said", role: "status", text: value().line }), list,
    ...(value().may_change && value().any_source ? [written("other_source", "use", (text) => act("use", text))] : []));
}

watch("value", draw);
draw();
