// The lines below the conversation: what is going on, what went wrong, where an answer's time went.
//
// Runs as the `js_on_load` of a gr.HTML whose template never changes: `props.value` has texts, put in as text.

const root = element.querySelector(".line");

function draw() {
  const { text = "", is_error = false, details = "" } = latest(props.value) || {};
  root.replaceChildren(
    make("p", { class: is_error ? "error" : "quiet", role: "status", text }),
    ...(details ? [make("p", { class: "details", text: details })] : []));
}

watch("value", draw);
draw();
