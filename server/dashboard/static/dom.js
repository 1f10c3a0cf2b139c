// Elements. Text from the server only ever becomes text: nothing in this folder writes HTML.

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * An element with attributes and children. `on…` adds a listener, `class` a class name; null, undefined and false are
 * left out, true is an empty attribute.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {any}
 */
export function h(tag, attributes = {}, ...children) {
  return fill(decorate(document.createElement(tag), attributes), children);
}

/**
 * As `h`, of SVG.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {any}
 */
export function svg(tag, attributes = {}, ...children) {
  return fill(decorate(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes), children);
}

/**
 * Give a node these children, and no others.
 * @param {Element} node
 * @param {...(Child | Child[])} children
 */
export function replace(node, ...children) {
  node.replaceChildren();
  return fill(node, children);
}

/**
 * As `replace`, of what is drawn again and again: who was on a control, or had scrolled, still is and still has.
 * @param {Element} node
 * @param {...(Child | Child[])} children
 */
export function refresh(node, ...children) {
  const active = document.activeElement;
  const held = active && node.contains(active) ? mark(active) : "";
  const scrolled = [...node.querySelectorAll(".scroll")].map((one) => ({ left: one.scrollLeft, top: one.scrollTop }));
  replace(node, ...children);
  [...node.querySelectorAll(".scroll")].forEach((one, i) => one.scrollTo(scrolled[i] ?? {}));
  if (held) focusAgain(node, held);
}

/** Focus the control that is marked so. @param {ParentNode} node @param {string} held */
export function focusAgain(node, held) {
  const again = [...node.querySelectorAll("a, button, [tabindex], input, select, summary")].find((one) => mark(one) === held);
  if (again instanceof HTMLElement) again.focus({ preventScroll: true });
}

/** What tells a control from the others, also when it is made anew. @param {Element} node */
export const mark = (node) => {
  const names = ["id", "href", "aria-label", "data-sort", "data-key"].map((name) => node.getAttribute(name) ?? "");
  return [node.tagName, ...(names.some(Boolean) ? names : [node.textContent])].join("|");
};

/**
 * What assistive technology reads out; the same text twice is read twice.
 * @param {string} text
 */
export function announce(text) {
  const node = document.getElementById("announcer");
  if (node) node.textContent = node.textContent === text ? `${text}\u00a0` : text;
}

/** @param {Element} node @param {Record<string, any>} attributes */
function decorate(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  return node;
}

/** @param {Element} node @param {(Child | Child[])[]} children */
function fill(node, children) {
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
  return node;
}
