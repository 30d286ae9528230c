// Small helpers for building the page.

export const byId = (id) => document.getElementById(id);

// An element: make("p", {class: "meta", onclick: f}, "text", child, ...); null children are left out.
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Runs a change of the page; a focus whose element that hides or removes goes to `rest`, not to the top of the page.
export function keepFocus(rest, change) {
  const focused = document.activeElement;
  change();
  if (!focused.getClientRects().length) rest.focus({ preventScroll: true });
}

export const number = (value) => Number(value).toLocaleString("en");
export const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
