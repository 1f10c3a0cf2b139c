// Two runs over each other: the curves, the closing figures, and the settings in which they differ.

import { get, runPath } from "./api.js";
import { h, replace } from "./dom.js";
import { bytes, count, duration, figure, known, percent, plain } from "./format.js";
import { epsilon, field, notice, stateName } from "./parts.js";
import { loadPlots, noPlots, Plot } from "./plots.js";
import { table } from "./table.js";

/** What the curves are drawn against: round by round, or by what it took. */
const AGAINST = [
  { name: "round", label: "Round", add: (/** @type {any} */ row) => row.round, sum: false, format: count },
  { name: "seconds", label: "Time", add: (/** @type {any} */ row) => row.seconds ?? 0, sum: true, format: duration },
  { name: "bytes", label: "Bytes up", add: (/** @type {any} */ row) => row.uplink_bytes ?? 0, sum: true, format: bytes },
];
const FIGURES = [
  { title: "Accuracy", name: "accuracy", format: percent, ceiling: 1 },
  { title: "Loss", name: "loss", format: figure },
  { title: "Bytes up per round", name: "uplink_bytes", format: bytes, floor: 0 },
  { title: "Bytes down per round", name: "downlink_bytes", format: bytes, floor: 0 },
  { title: "Time per round", name: "seconds", format: duration, floor: 0 },
  { title: "Privacy spent", name: "epsilon", format: figure, floor: 0 },
];

/** @param {HTMLElement} main @param {string} a @param {string} b */
export function openCompare(main, a, b) {
  document.title = "Compare · Hedgerow";
  const stop = new AbortController();
  /** @type {Plot[]} */
  let plots = [];
  let against = AGAINST[0];
  const body = h("div", { class: "rows" }, h("p", { class: "waiting" }, "Loading…"));
  const first = h("select", { id: "run-a", onchange: () => go() });
  const second = h("select", { id: "run-b", onchange: () => go() });
  const axis = h("select", { id: "against", onchange: () => void show() }, AGAINST.map((one) => h("option", { value: one.name }, one.label)));
  const go = () => {
    location.hash = `#/compare?${new URLSearchParams({ a: first.value, b: second.value })}`;
  };
  replace(
    main,
    h("div", { class: "head" }, h("h1", {}, "Compare")),
    h("div", { class: "card tools" }, field("First run", first), field("Second run", second), field("Against", axis)),
    body,
  );
  /** @type {any[] | null} */
  let pair = null;

  const show = async () => {
    if (!pair) return;
    const uPlot = await loadPlots();
    if (stop.signal.aborted) return;
    against = AGAINST.find((one) => one.name === axis.value) ?? AGAINST[0];
    const [one, two] = pair;
    const rows = merged(one.rounds, two.rounds);
    for (const plot of plots) plot.close();
    plots = FIGURES.filter(({ name }) => rows.some((row) => known(row.a?.[name]) || known(row.b?.[name]))).map(
      ({ title, name, format, floor, ceiling }) =>
        new Plot(
          {
            title,
            format,
            floor,
            ceiling,
            x: { label: against.label, of: (row) => row.x, format: against.format },
            curves: [
              { label: one.run.name, color: 1, of: (row) => row.a?.[name] },
              { label: two.run.name, color: 2, dash: true, of: (row) => row.b?.[name] },
            ],
          },
          uPlot,
        ),
    );
    replace(
      body,
      uPlot ? null : noPlots(),
      h("h2", { class: "unseen" }, "Curves"),
      h("div", { class: "plots" }, plots.map((plot) => plot.node)),
      h("h2", {}, "Figures"),
      h("div", { class: "card flush even" }, table({ caption: "Closing figures", columns: columns(one.run, two.run), rows: closing(one.run, two.run) })),
      h("h2", {}, "Settings that differ"),
      h("div", { class: "card flush even" }, table({ caption: "Settings that differ", columns: columns(one.run, two.run), rows: differences(one.run.config, two.run.config), nothing: "None: both ran with the same settings." })),
    );
    for (const plot of plots) plot.show(rows);
  };

  /** Both runs' rows by where they stand on the axis. @param {any[]} one @param {any[]} two */
  const merged = (one, two) => {
    /** @type {Map<number, any>} */
    const found = new Map();
    for (const [side, rows] of /** @type {const} */ ([["a", one], ["b", two]])) {
      let sum = 0;
      for (const row of rows) {
        sum = against.sum ? sum + against.add(row) : against.add(row);
        found.set(sum, { ...found.get(sum), x: sum, [side]: row });
      }
    }
    return [...found.values()].sort((p, q) => p.x - q.x);
  };

  const load = async () => {
    try {
      const { runs } = await get("runs", stop.signal);
      if (runs.length < 2) {
        replace(body, h("div", { class: "blank card" }, h("p", {}, runs.length ? "There is only one run here; a second one is needed to compare." : "There are no runs here yet.")));
        return;
      }
      const ids = runs.map((/** @type {any} */ run) => run.id);
      const chosen = [a || ids[0], b || ids.find((/** @type {string} */ id) => id !== (a || ids[0]))];
      [first, second].forEach((select, i) => replace(select, runs.map((/** @type {any} */ run) => h("option", { value: run.id, selected: run.id === chosen[i] }, run.name))));
      pair = await Promise.all(chosen.map(async (id) => ({ run: await get(runPath(id), stop.signal), ...(await get(`${runPath(id)}/rounds`, stop.signal)) })));
      await show();
    } catch (error) {
      if (!stop.signal.aborted) replace(body, notice(`The runs cannot be compared: ${error instanceof Error ? error.message : error}.`, "bad"));
    }
  };
  void load();
  return {
    close() {
      stop.abort();
      for (const plot of plots) plot.close();
    },
  };
}

/** @param {any} one @param {any} two @returns {import("./table.js").Column<any>[]} */
const columns = (one, two) => [
  { head: "Name", row: true, cell: (row) => row.name },
  { head: one.name, cell: (row) => row.a },
  { head: two.name, cell: (row) => row.b },
];

/** @param {any} one @param {any} two */
function closing(one, two) {
  /** @type {[string, (run: any) => string][]} */
  const lines = [
    ["State", (run) => stateName(run.state)],
    ["Rounds", (run) => `${count(run.round)} / ${count(run.rounds)}`],
    ["Accuracy", (run) => percent(run.accuracy)],
    ["Loss", (run) => figure(run.loss)],
    ["Epsilon", (run) => epsilon(run) ?? "none"],
    ["Protection", (run) => run.protection || "none"],
    ["Sent up", (run) => bytes(run.uplink_bytes)],
    ["Sent down", (run) => bytes(run.downlink_bytes)],
    ["Took", (run) => duration(run.seconds)],
  ];
  return lines.map(([name, tell]) => ({ name, a: tell(one), b: tell(two) }));
}

/** @param {Record<string, unknown>} one @param {Record<string, unknown>} two */
function differences(one, two) {
  const names = [...new Set([...Object.keys(one), ...Object.keys(two)])].filter((name) => name !== "run.out");
  return names.filter((name) => JSON.stringify(one[name]) !== JSON.stringify(two[name])).map((name) => ({ name, a: plain(one[name]), b: plain(two[name]) }));
}
