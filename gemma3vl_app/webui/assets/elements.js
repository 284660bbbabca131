// Makes an element; comes before the script of each component that the page draws itself.
//
// `text` is put in as text, never as markup; names that begin with "on" are events; attributes that are
// null or false are left out, and so are children that are nothing.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, content] of Object.entries(attributes)) {
    if (name === "text") node.textContent = content;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), content);
    else if (content !== null && content !== false) node.setAttribute(name, content === true ? "" : content);
  }
  node.append(...children.filter(Boolean));
  return node;
}

// Returns the newest of the values that have come: `latest(props.value)` each time it is looked at.
//
// Gradio delivers the values of two events in either order; `order` names the visit and counts its values.
// A value of another visit is always newer: the server was started anew.
function newest() {
  let known = null;
  return (value) => {
    const [visit, number] = (value && value.order) || [];
    const is_late = known && known.order && known.order[0] === visit && number < known.order[1];
    if (value && !is_late) known = value;
    return known;
  };
}
const latest = newest();

