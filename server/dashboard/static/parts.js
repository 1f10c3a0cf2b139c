// Small pieces that several views show.

import { focusAgain, h, mark } from "./dom.js";
import { count, figure, known } from "./format.js";

const STATES = { running: "Running", paused: "Paused", finished: "Finished", failed: "Failed", interrupted: "Interrupted", unreadable: "Unreadable" };

/** @param {string} state */
export const stateName = (state) => STATES[/** @type {keyof typeof STATES} */ (state)] ?? state;

/** @param {string} state */
export const pill = (state) => h("span", { class: "pill", "data-state": state }, stateName(state));

/** A share as a bar with its words beside it. @param {number} part @param {number} whole @param {string} text @param {string} [kind] */
export function meter(part, whole, text, kind = "") {
  const bar = h("span", { class: `meter ${kind}`, "aria-hidden": "true" }, h("span", {}));
  bar.firstChild.style.width = `${whole > 0 ? Math.max(0, Math.min(100, (100 * part) / whole)) : 0}%`;
  return h("span", { class: "metered" }, bar, h("span", {}, text));
}

/** @param {any} run */
export const rounds = (run) => meter(run.round, run.rounds, `${count(run.round)} / ${count(run.rounds)}`);

/** Spent of allowed. @param {any} run */
export function epsilon(run) {
  if (!known(run.epsilon) && !known(run.delta)) return null;
  const limit = known(run.epsilon_limit) ? ` of ${figure(run.epsilon_limit)}` : "";
  return `${known(run.epsilon) ? figure(run.epsilon) : "unbounded"}${limit}`;
}

/** A control with its label. @param {string} label @param {HTMLElement} control which has an id */
export const field = (label, control) => h("span", { class: "field" }, h("label", { for: control.id }, label), control);

const MODES = { sync: "synchronous", semi_sync: "semi-synchronous", async: "asynchronous" };

/** @param {string} mode */
export const modeName = (mode) => MODES[/** @type {keyof typeof MODES} */ (mode)] ?? mode;

/** @param {string} text @param {"bad" | "warn" | ""} [kind] */
export const notice = (text, kind = "") => h("p", { class: `notice ${kind}` }, text);

/**
 * Asks before it does. The dialog is gone when this resolves; true: do it.
 * @param {{title: string, text: string, yes: string}} question
 * @returns {Promise<boolean>}
 */
export function confirmed({ title, text, yes }) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { "aria-labelledby": "ask-title", "aria-describedby": "ask-text" },
      h(
        "form",
        { method: "dialog" },
        h("h2", { id: "ask-title" }, title),
        h("p", { id: "ask-text" }, text),
        h("div", { class: "buttons" }, h("button", { value: "no", autofocus: true }, "Cancel"), h("button", { value: "yes", class: "danger" }, yes)),
      ),
    );
    const opener = document.activeElement;
    const held = opener ? mark(opener) : "";
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (opener && !opener.isConnected) focusAgain(document, held); // the page was drawn again meanwhile
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
