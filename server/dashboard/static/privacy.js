// What the run promises its clients, and how much of the budget is spent.

import { get, runPath } from "./api.js";
import { h, replace } from "./dom.js";
import { figure, known, percent } from "./format.js";
import { meter, notice } from "./parts.js";
import { loadPlots, noPlots, Plot } from "./plots.js";
import { facts } from "./table.js";

/** @param {HTMLElement} place @param {import("./run-data.js").RunData} data */
export function openPrivacy(place, data) {
  const stop = new AbortController();
  const body = h("div", { class: "rows" }, h("p", { class: "waiting" }, "Loading…"));
  replace(place, h("h2", {}, "Privacy"), body);
  /** @type {Plot | null} */
  let plot = null;
  let limit = NaN;

  const load = async () => {
    let answer;
    let uPlot;
    try {
      [answer, uPlot] = await Promise.all([get(`${runPath(data.id)}/privacy`, stop.signal), loadPlots()]);
    } catch (error) {
      if (!stop.signal.aborted) replace(body, notice(`The ledger cannot be read: ${error instanceof Error ? error.message : error}.`, "bad"));
      return;
    }
    if (stop.signal.aborted) return;
    if (answer.mechanism === "none") {
      plot?.close();
      plot = null;
      replace(body, none(data.run));
      return;
    }
    if (!plot || limit !== (answer.limit ?? NaN)) {
      plot?.close();
      limit = answer.limit ?? NaN;
      plot = new Plot(plan(answer), uPlot);
    }
    replace(body, budget(answer, data.run), uPlot ? null : noPlots(), h("div", { class: "plots one" }, plot.node));
    plot.show(answer.events ?? []);
  };
  const off = data.on((change) => change === "round" && void load());
  void load();
  return {
    close() {
      off();
      stop.abort();
      plot?.close();
    },
  };
}

/** @param {any} run */
const none = (run) =>
  h(
    "div",
    { class: "card" },
    h("p", {}, "This run uses no differential privacy: there is no epsilon to spend, and no bound on what the model may tell of a client."),
    facts([["Protection", run.protection || "none"]]),
  );

/** @param {any} answer @param {any} run */
function budget(answer, run) {
  const { epsilon, limit } = answer;
  const spent = known(epsilon) ? figure(epsilon) : "unbounded";
  /** @type {import("./table.js").Fact[]} */
  const pairs = [
    ["Epsilon spent", known(epsilon) && known(limit) ? meter(epsilon, limit, `${spent} of ${figure(limit)}`, epsilon > 0.9 * limit ? "high" : "") : spent],
    ["Used of the budget", known(epsilon) && known(limit) && limit > 0 ? percent(epsilon / limit) : "no limit is set"],
    ["Delta", figure(answer.delta)],
    ["Mechanism", answer.mechanism],
    ["Noise multiplier", figure(answer.noise_multiplier)],
    ["Clipped to L2 norm", figure(answer.clip)],
    ["Protection", h("span", { class: "words" }, run.protection || "none"), "wide"],
  ];
  return facts(pairs, "facts tiles");
}

/** @param {any} answer @returns {import("./plots.js").Plan} */
const plan = ({ limit }) => ({
  title: "Epsilon after each round",
  format: figure,
  floor: 0,
  curves: [
    { label: "Spent", color: 5, of: (row) => row.epsilon },
    ...(known(limit) ? [{ label: "Allowed", color: 6, dash: true, of: () => limit }] : []),
  ],
});
