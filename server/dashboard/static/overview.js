// How a run is doing: the round in progress, and every figure by round.

import { get, runPath } from "./api.js";
import { h, refresh, replace } from "./dom.js";
import { bytes, duration, figure, known, percent } from "./format.js";
import { notice } from "./parts.js";
import { loadPlots, noPlots, Plot } from "./plots.js";
import { strip } from "./strip.js";

/** @typedef {import("./plots.js").Plan} Plan */
/** @typedef {import("./run-data.js").RunData} RunData */

const TICK_MS = 1000;

/** Which plots a run has: those of which it has a figure. @param {any[]} rows @param {any} run @returns {Plan[]} */
export function plans(rows, run) {
  const has = (/** @type {string} */ name) => rows.some((row) => known(row[name]));
  /** @type {Plan[]} */
  const made = [
    {
      title: "Accuracy",
      format: percent,
      ceiling: 1,
      curves: [
        { label: "Float32", color: 1, of: (row) => row.accuracy },
        ...(has("int8_accuracy") ? [{ label: "INT8", color: 2, dots: true, of: (/** @type {any} */ row) => row.int8_accuracy }] : []),
      ],
    },
    {
      title: "Loss",
      format: figure,
      curves: [
        { label: "Evaluation", color: 1, of: (row) => row.loss },
        ...(has("train_loss") ? [{ label: "Training", color: 2, dash: true, of: (/** @type {any} */ row) => row.train_loss }] : []),
      ],
    },
    {
      title: "Bytes per round",
      format: bytes,
      floor: 0,
      curves: [
        { label: "Up", color: 1, of: (row) => row.uplink_bytes },
        { label: "Down", color: 3, dash: true, of: (row) => row.downlink_bytes },
      ],
    },
    { title: "Time per round", format: duration, floor: 0, curves: [{ label: "Seconds", color: 4, of: (row) => row.seconds }] },
    updates(has),
  ];
  if (has("epsilon")) {
    const limit = run.epsilon_limit;
    made.splice(2, 0, {
      title: "Privacy spent",
      format: figure,
      floor: 0,
      curves: [
        { label: "Epsilon", color: 5, of: (row) => row.epsilon },
        ...(known(limit) ? [{ label: "Allowed", color: 6, dash: true, of: () => limit }] : []),
      ],
    });
  }
  return made;
}

/** What became of those asked, stacked. @param {(name: string) => boolean} has @returns {Plan} */
function updates(has) {
  const parts = [
    { label: "In the sum", color: 1, name: "clients" },
    { label: "Late", color: 4, name: "late" },
    { label: "Declined", color: 5, name: "declined" },
    { label: "Dropped", color: 2, name: "dropped" },
  ].filter(({ name }) => name === "clients" || name === "dropped" || has(name));
  return {
    title: "Updates per round",
    format: (value) => (known(value) ? String(Math.round(value)) : "–"),
    floor: 0,
    curves: parts.map(({ label, color, name }, i) => ({
      label,
      color,
      bars: true,
      of: (row) => row[name],
      height: (row) => parts.slice(0, i + 1).reduce((sum, part) => sum + (row[part.name] ?? 0), 0),
    })),
  };
}

/** @param {HTMLElement} place @param {RunData} data */
export function openOverview(place, data) {
  const warnings = h("div", {});
  const now = h("section", { class: "card", "aria-labelledby": "now-title" });
  const help = h("div", {});
  const grid = h("div", { class: "plots" });
  replace(place, warnings, now, h("h2", { class: "unseen" }, "Figures by round"), help, grid);
  /** @type {Map<string, Plot>} */
  const plots = new Map();
  /** @type {any} */
  let uPlot;
  /** When the round in progress was planned. */
  let planned = { round: 0, at: null };
  let closed = false;
  let due = false;

  const showNow = () => refresh(now, strip(data.run, data.rounds, planned.at));
  const showPlots = () => {
    const rows = withArtefacts(data.rounds, data.run);
    const wanted = plans(rows, data.run);
    const names = wanted.map((plan) => `${plan.title} ${plan.curves.length}`);
    if (names.join() !== [...plots.keys()].join()) {
      for (const plot of plots.values()) plot.close();
      plots.clear();
      wanted.forEach((plan, i) => plots.set(names[i], new Plot(plan, uPlot)));
      replace(grid, [...plots.values()].map((plot) => plot.node));
    }
    for (const plot of plots.values()) plot.show(rows);
  };
  const soon = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      if (!closed && uPlot !== undefined) showPlots();
    });
  };
  const findPlan = async () => {
    const round = data.run.now?.round;
    if (!round || planned.round === round) return;
    const { events } = await get(`${runPath(data.id)}/events?kind=round_planned&limit=1`, data.abort.signal).catch(() => ({ events: [] }));
    if (closed) return;
    planned = { round, at: events[0]?.round === round ? events[0].unix_s : null };
    showNow();
  };
  const showAll = () => {
    replace(warnings, (data.run.warnings ?? []).map((/** @type {string} */ text) => notice(text, "warn")));
    showNow();
    void findPlan();
    soon();
  };

  const off = data.on((change, told) => {
    if (change === "event" && told.kind === "round_planned") planned = { round: told.round, at: told.unix_s };
    if (change === "run") showAll();
    if (change === "round") {
      showNow();
      soon();
    }
  });
  const tick = setInterval(() => data.run.now && showNow(), TICK_MS);
  showAll();
  void loadPlots().then((found) => {
    uPlot = found;
    if (!found) replace(help, noPlots());
    soon();
  });
  return {
    close() {
      closed = true;
      off();
      clearInterval(tick);
      for (const plot of plots.values()) plot.close();
    },
  };
}

/** The rows, the last one with the accuracy of the INT8 artefacts that came of it: of the worst. @param {any[]} rows @param {any} run */
function withArtefacts(rows, run) {
  const made = Object.values(run.final?.deploy?.formats ?? {});
  const int8 = made.filter((one) => one?.precision === "int8" && !one.refused && known(one.accuracy)).map((one) => one.accuracy);
  const last = rows[rows.length - 1];
  if (!int8.length || !last || known(last.int8_accuracy)) return rows;
  return [...rows.slice(0, -1), { ...last, int8_accuracy: Math.min(...int8) }];
}
