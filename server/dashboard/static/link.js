// Whether what is shown is still so: the chip in the bar, and the line below it when it is not.

import { h, replace } from "./dom.js";

/** The chip in the bar. @param {"idle" | "live" | "waiting"} state @param {string} text */
export function setLink(state, text) {
  const chip = /** @type {HTMLElement} */ (document.getElementById("link"));
  chip.dataset.state = state;
  chip.textContent = text;
}

/** The line below the bar; empty: all is well. @param {string} text @param {() => void} [retry] */
export function setOutage(text, retry) {
  const bar = /** @type {HTMLElement} */ (document.getElementById("outage"));
  bar.hidden = !text;
  replace(bar, text && h("span", {}, text), text && retry && h("button", { type: "button", class: "small", onclick: retry }, "Try now"));
}
