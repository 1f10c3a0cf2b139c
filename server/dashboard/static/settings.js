// Every setting of the run, as it was started.

import { h, replace } from "./dom.js";
import { plain } from "./format.js";
import { facts } from "./table.js";

/** @param {HTMLElement} place @param {import("./run-data.js").RunData} data */
export function openSettings(place, data) {
  /** @type {Map<string, [string, string][]>} */
  const groups = new Map();
  for (const [name, value] of Object.entries(data.run.config ?? {})) {
    const dot = name.lastIndexOf(".");
    const group = dot < 0 ? "run" : name.slice(0, dot).replaceAll(".", " ");
    groups.set(group, [...(groups.get(group) ?? []), [name.slice(dot + 1), plain(value)]]);
  }
  replace(
    place,
    h("h2", {}, "Settings"),
    groups.size === 0 && h("p", { class: "empty-line" }, "The run has not written its settings yet."),
    h("div", { class: "groups" }, [...groups].map(([group, pairs]) => h("section", { class: "card", "aria-label": group }, h("h3", {}, `${group.charAt(0).toUpperCase()}${group.slice(1)}`), facts(pairs, "facts lines")))),
  );
  return { close() {} };
}
