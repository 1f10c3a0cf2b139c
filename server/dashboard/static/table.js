// Tables that can be read out: a caption, headers with a scope, and sorting that says which way it goes.

import { h } from "./dom.js";

/**
 * @template Row
 * @typedef {{head: string, cell: (row: Row) => import("./dom.js").Child | import("./dom.js").Child[], number?: boolean, sort?: string, row?: boolean, title?: string}} Column
 *   `sort` is the name that is asked for; `row`: this cell names the row.
 */

/**
 * @template Row
 * @param {{caption: string, columns: Column<Row>[], rows: Row[], sorted?: {by: string, order: "asc" | "desc"}, onsort?: (by: string) => void, nothing?: string, seen?: boolean}} plan
 */
export function table({ caption, columns, rows, sorted, onsort, nothing = "Nothing yet.", seen = false }) {
  const heads = columns.map((column) => {
    const attributes = { scope: "col", class: column.number ? "n" : null, title: column.title };
    if (!column.sort || !onsort) return h("th", attributes, column.head);
    const on = sorted?.by === column.sort;
    const way = on ? (sorted?.order === "asc" ? "ascending" : "descending") : "none";
    const mark = on ? (sorted?.order === "asc" ? "▲" : "▼") : "";
    const button = h("button", { type: "button", class: "sort", "data-sort": column.sort, onclick: () => onsort(column.sort ?? "") }, column.head, h("span", { class: "mark", "aria-hidden": "true" }, mark));
    return h("th", { ...attributes, "aria-sort": way }, button);
  });
  const body = rows.map((row) =>
    h(
      "tr",
      {},
      columns.map((column) => h(column.row ? "th" : "td", { class: column.number ? "n" : null, scope: column.row ? "row" : null }, column.cell(row))),
    ),
  );
  const empty = h("tr", {}, h("td", { colspan: columns.length, class: "empty-line" }, nothing));
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: seen ? null : "unseen" }, caption), h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body.length ? body : empty)),
  );
}

/** @typedef {[name: string, value: import("./dom.js").Child | import("./dom.js").Child[], kind?: string]} Fact */

/**
 * Facts in pairs.
 * @param {Fact[]} pairs
 * @param {string} [kind]
 */
export const facts = (pairs, kind = "facts") => h("dl", { class: kind }, pairs.map(([name, value, like]) => h("div", { class: like }, h("dt", {}, name), h("dd", {}, value))));
