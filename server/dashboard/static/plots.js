// The plots: a figure each, with a legend that follows the cursor and the same figures as a table.
// uPlot draws them. Where it was not fetched, the tables stand alone.

import { h, replace, svg } from "./dom.js";
import { count, known, trimmed, UNKNOWN } from "./format.js";
import { THEME_CHANGED } from "./theme.js";

/**
 * @typedef {{label: string, color: number, dash?: boolean, dots?: boolean, bars?: boolean, height?: (row: any) => number, of: (row: any) => number | null | undefined}} Curve
 *   `color` is 1 to 6: the custom property --series-N. `height`: how high its bar is drawn, where that is not its value.
 * @typedef {{title: string, format: (value: number | null | undefined) => string, curves: Curve[], floor?: number,
 *   ceiling?: number, x?: {label: string, of: (row: any) => number | null | undefined, format?: (value: number) => string}}} Plan
 *   `floor`: the axis reaches down to it at least.
 */

const HEIGHT = 190;
const X_STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000];
const MOST_TABLE_ROWS = 500;

/** @type {Promise<any> | undefined} */
let library;

/** uPlot, or null if it was not fetched. */
export function loadPlots() {
  library ??= import("./vendor/uPlot.esm.js").then(
    (module) => {
      document.head.append(h("link", { rel: "stylesheet", href: new URL("./vendor/uPlot.min.css", import.meta.url).href }));
      return module.default;
    },
    () => null,
  );
  return library;
}

/** What stands above the tables when there are no plots. */
export const noPlots = () =>
  h(
    "p",
    { class: "note" },
    "Plots need the library uPlot, which was not fetched when this was built; the figures stand in tables instead. To fetch it: ",
    h("code", {}, "make charts"),
    ", or ",
    h("code", {}, "python server/dashboard/charts.py"),
    ".",
  );

/** One plot. `node` is its figure; `show(rows)` draws them; `close()` when it is no longer looked at. */
export class Plot {
  /** @param {Plan} plan @param {any} uPlot null: a table alone */
  constructor(plan, uPlot) {
    this.plan = plan;
    this.uPlot = uPlot;
    // Stacked bars stand before each other: the highest is drawn first.
    this.drawing = plan.curves.some((curve) => curve.bars) ? [...plan.curves].reverse() : plan.curves;
    /** @type {any} */
    this.drawn = null;
    /** @type {any[]} */
    this.rows = [];
    this.x = plan.x ?? { label: "Round", of: (/** @type {any} */ row) => row.round };
    this.xText = this.x.format ?? count;
    this.values = plan.curves.map(() => h("span", { class: "value" }, UNKNOWN));
    this.at = h("span", { class: "at" });
    this.canvas = h("div", { class: "canvas", tabindex: "0", role: "img", "aria-label": plan.title, onkeydown: (/** @type {KeyboardEvent} */ event) => this.step(event) });
    this.table = h("div", { class: "scroll plot-table", tabindex: "0", role: "region", "aria-label": `${plan.title}: table`, hidden: Boolean(uPlot) });
    this.toggle = h("button", { type: "button", class: "quiet small", "aria-pressed": "false", "aria-label": `${plan.title}: show as table`, onclick: () => this.flip() }, "Table");
    this.node = h(
      "figure",
      { class: "plot" },
      h("figcaption", {}, h("h3", {}, plan.title), this.at, uPlot && this.toggle),
      h("ul", { class: "legend" }, plan.curves.map((curve, i) => h("li", {}, key(curve), h("span", { class: "label" }, curve.label), " ", this.values[i]))),
      uPlot && this.canvas,
      this.table,
    );
    this.sizes = new ResizeObserver(() => this.fit());
    if (uPlot) this.sizes.observe(this.canvas);
    this.recolour = () => this.drawn?.redraw(false, false);
    document.addEventListener(THEME_CHANGED, this.recolour);
  }

  /** @param {any[]} rows */
  show(rows) {
    this.rows = rows.filter((row) => known(this.x.of(row)));
    this.node.classList.toggle("empty", this.rows.length === 0);
    this.canvas.setAttribute("aria-label", this.inWords());
    this.read(null);
    if (!this.table.hidden) this.tabulate();
    if (!this.uPlot) return;
    const data = this.data();
    if (this.drawn) this.drawn.setData(data);
    else if (this.canvas.clientWidth) this.draw(data);
  }

  close() {
    this.sizes.disconnect();
    document.removeEventListener(THEME_CHANGED, this.recolour);
    this.drawn?.destroy();
    this.drawn = null;
  }

  data() {
    return [this.rows.map((row) => this.x.of(row)), ...this.drawing.map((curve) => this.rows.map((row) => (curve.height ?? curve.of)(row) ?? null))];
  }

  /** @param {any[]} data */
  draw(data) {
    const { plan, uPlot } = this;
    const axis = { stroke: () => colour("--muted"), font: "11px system-ui, sans-serif", grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { show: false } };
    const bars = plan.curves.some((curve) => curve.bars);
    this.drawn = new uPlot(
      {
        width: this.canvas.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        padding: [8, 10, 0, 0],
        cursor: { y: false, points: { size: 7 }, drag: { x: true, y: false }, sync: this.plan.x ? undefined : { key: "rounds" } },
        scales: {
          x: { time: false, range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => (known(low) ? spread(low, high, bars) : [0, 1]) },
          y: { range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => this.span(low, high) },
        },
        axes: [
          { ...axis, size: 26, gap: 4, space: 44, incrs: this.plan.x ? undefined : X_STEPS, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map((tick) => trimmed(this.xText(tick))) },
          { ...axis, size: 62, gap: 6, space: 34, incrs: bars ? X_STEPS : undefined, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map((tick) => trimmed(plan.format(tick))) },
        ],
        series: [
          {},
          ...this.drawing.map((curve) => ({
            label: curve.label,
            stroke: () => colour(`--series-${curve.color}`),
            fill: curve.bars ? () => colour(`--series-${curve.color}`) : undefined,
            width: curve.bars ? 0 : 1.75,
            dash: curve.dash ? [6, 4] : undefined,
            spanGaps: true,
            paths: curve.bars ? uPlot.paths.bars({ size: [0.7, 28] }) : undefined,
            points: { show: curve.bars ? false : curve.dots || data[0].length < 3, size: curve.dots ? 9 : 6, fill: () => colour(`--series-${curve.color}`) },
          })),
        ],
        hooks: { setCursor: [(/** @type {any} */ drawn) => this.read(drawn.cursor.idx ?? null)] },
      },
      data,
      this.canvas,
    );
  }

  /** The y axis: the figures, a little air, and never a flat line's empty range. @param {number} low @param {number} high @returns {[number, number]} */
  span(low, high) {
    if (!known(low) || !known(high)) return [this.plan.floor ?? 0, this.plan.ceiling ?? 1];
    if (known(this.plan.floor)) low = Math.min(low, this.plan.floor);
    const air = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
    const top = high + air;
    return [low === this.plan.floor ? low : low - air, known(this.plan.ceiling) ? Math.min(top, Math.max(this.plan.ceiling, high)) : top];
  }

  fit() {
    const width = this.canvas.clientWidth;
    if (!width) return;
    if (!this.drawn) this.draw(this.data());
    else if (this.drawn.width !== width) this.drawn.setSize({ width, height: HEIGHT });
  }

  /** The legend's values at a row; null: the last there is of each. @param {number | null} index */
  read(index) {
    this.plan.curves.forEach((curve, i) => {
      const value = index === null ? lastOf(this.rows, curve.of) : curve.of(this.rows[index]);
      this.values[i].textContent = this.plan.format(value);
    });
    const row = index === null ? null : this.rows[index];
    this.at.textContent = row ? `${this.x.label.toLowerCase()} ${this.xText(/** @type {number} */ (this.x.of(row)))}` : "";
  }

  /** Arrow keys walk along the curve. @param {KeyboardEvent} event */
  step(event) {
    const last = this.rows.length - 1;
    const now = this.drawn?.cursor.idx ?? last;
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    if (next === undefined || last < 0 || !this.drawn) return;
    event.preventDefault();
    const row = this.rows[Math.max(0, Math.min(last, next))];
    const left = this.drawn.valToPos(this.x.of(row), "x");
    this.drawn.setCursor({ left, top: 10 });
  }

  flip() {
    const asTable = this.table.hidden;
    this.table.hidden = !asTable;
    this.canvas.hidden = asTable;
    this.toggle.setAttribute("aria-pressed", String(asTable));
    this.toggle.textContent = asTable ? "Plot" : "Table";
    if (asTable) this.tabulate();
    else this.show(this.rows);
  }

  tabulate() {
    const { curves, format, title } = this.plan;
    const shown = this.rows.slice(-MOST_TABLE_ROWS).reverse();
    replace(
      this.table,
      shown.length === 0
        ? h("p", { class: "empty-line" }, "Nothing yet.")
        : h(
            "table",
            {},
            h("caption", { class: "unseen" }, title),
            h("thead", {}, h("tr", {}, [this.x.label, ...curves.map((curve) => curve.label)].map((name) => h("th", { scope: "col", class: "n" }, name)))),
            h("tbody", {}, shown.map((row) => h("tr", {}, h("th", { scope: "row", class: "n" }, this.xText(/** @type {number} */ (this.x.of(row)))), curves.map((curve) => h("td", { class: "n" }, format(curve.of(row))))))),
          ),
    );
  }

  /** The plot for those who can't see it. */
  inWords() {
    const { title, curves, format } = this.plan;
    if (!this.rows.length) return `${title}: nothing yet`;
    const told = curves.flatMap((curve) => {
      const found = this.rows.map(curve.of).filter(known);
      if (!found.length) return [];
      const ends = `${format(found[0])} to ${format(found[found.length - 1])}`;
      return [`${curve.label} from ${ends}, least ${format(Math.min(...found))}, most ${format(Math.max(...found))}`];
    });
    return `${title}, ${this.rows.length} points. ${told.join(". ")}. Arrow keys read the curve.`;
  }
}

/** A sample of a curve, for its legend. @param {Curve} curve */
function key(curve) {
  const shape = curve.bars
    ? svg("rect", { x: 3, y: 1, width: 10, height: 10, rx: 2 })
    : svg("path", { d: "M0 6h16", "stroke-dasharray": curve.dash ? "5 3" : null });
  const dot = curve.dots ? svg("circle", { cx: 8, cy: 6, r: 4 }) : null;
  return svg("svg", { class: `key s${curve.color}${curve.bars || curve.dots ? " full" : ""}`, viewBox: "0 0 16 12", width: 16, height: 12, "aria-hidden": "true" }, dot ?? shape);
}

/** @param {any[]} rows @param {(row: any) => number | null | undefined} of */
export function lastOf(rows, of) {
  for (let i = rows.length - 1; i >= 0; i -= 1) {
    const value = of(rows[i]);
    if (known(value)) return value;
  }
  return null;
}

/** The x axis; a lone point stands in its middle, bars have room at both ends. @param {number} low @param {number} high @param {boolean} bars @returns {[number, number]} */
function spread(low, high, bars) {
  if (low === high) return [low - 1, high + 1];
  return bars ? [low - 0.6, high + 0.6] : [low, high];
}

/** A custom property as a colour that a canvas takes. @param {string} name */
function colour(name) {
  const probe = document.getElementById("probe") ?? document.body.appendChild(h("span", { id: "probe", hidden: true }));
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}
