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

