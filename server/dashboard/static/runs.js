// All runs of the folder, newest first.

import { get } from "./api.js";
import { announce, h, refresh, replace } from "./dom.js";
import { ago, bytes, duration, figure, moment, percent, plural } from "./format.js";
import { setLink, setOutage } from "./link.js";
import { epsilon, modeName, pill, rounds, stateName } from "./parts.js";
import { table } from "./table.js";

const EVERY_MS = 2000;

/** @param {HTMLElement} main */
export function openRuns(main) {
  document.title = "Runs · Hedgerow";
  const tally = h("p", { class: "tally" });
  const list = h("div", { class: "card flush" }, h("p", { class: "waiting" }, "Loading runs…"));
  replace(main, h("div", { class: "head" }, h("h1", {}, "Runs"), tally), list);
  const stop = new AbortController();
  /** @type {Map<string, string>} */
  let states = new Map();
  /** @type {ReturnType<typeof setTimeout>} */
  let timer;
  let last = "";

  /** @param {any[]} runs */
  const show = (runs) => {
    for (const run of runs) {
      const before = states.get(run.id);
      if (before && before !== run.state) announce(`${run.name}: ${stateName(run.state)}`);
    }
    states = new Map(runs.map((run) => [run.id, run.state]));
    const live = runs.filter((run) => run.state === "running").length;
    tally.textContent = runs.length ? `${plural(runs.length, "run")}, ${live} running` : "";
    const content = JSON.stringify(runs);
    if (content === last) return;
    last = content;
    if (runs.length) refresh(list, table({ caption: "Runs, newest first", columns: COLUMNS, rows: runs }));
    else replace(list, nothing());
  };

  const load = async () => {
    try {
      show((await get("runs", stop.signal)).runs);
      setLink("live", "Live");
      setOutage("");
    } catch (error) {
      if (stop.signal.aborted) return;
      const reason = error instanceof Error ? error.message : String(error);
      setLink("waiting", "Offline");
      setOutage(last ? `Not up to date: ${reason}. Trying again every few seconds.` : `Runs cannot be listed: ${reason}.`, load);
      if (!last) replace(list, h("p", { class: "waiting" }, "No answer yet."));
    }
    clearTimeout(timer);
    if (!stop.signal.aborted) timer = setTimeout(load, EVERY_MS);
  };
  void load();
  return {
    close() {
      stop.abort();
      clearTimeout(timer);
    },
  };
}

/** @type {import("./table.js").Column<any>[]} */
const COLUMNS = [
  {
    head: "Run",
    row: true,
    cell: (run) => [h("a", { href: `#/runs/${encodeURIComponent(run.id)}`, class: "strong" }, run.name), h("span", { class: "sub" }, [run.model, run.data].filter(Boolean).join(" on "))],
  },
  { head: "State", cell: (run) => [pill(run.state), run.error && h("span", { class: "sub clip", title: run.error }, run.error)] },
  { head: "Rounds", cell: (run) => rounds(run) },
  { head: "Accuracy", number: true, cell: (run) => percent(run.accuracy) },
  { head: "Loss", number: true, cell: (run) => figure(run.loss) },
  { head: "Epsilon", number: true, cell: (run) => epsilon(run) ?? h("span", { class: "faint" }, "none"), title: "Spent, of what is allowed" },
  { head: "Strategy", cell: (run) => [run.strategy, h("span", { class: "sub" }, modeName(run.mode))] },
  { head: "Up", number: true, cell: (run) => bytes(run.uplink_bytes), title: "Bytes that clients sent" },
  { head: "Down", number: true, cell: (run) => bytes(run.downlink_bytes), title: "Bytes sent to clients" },
  { head: "Time", number: true, cell: (run) => duration(run.seconds) },
  { head: "Started", number: true, cell: (run) => h("span", { title: moment(run.started_s) }, ago(run.started_s)) },
];

const nothing = () =>
  h(
    "div",
    { class: "blank" },
    h("h2", {}, "No runs here yet"),
    h("p", {}, "A run appears by itself as soon as it starts in the folder that this dashboard watches. To make one now:"),
    h("pre", {}, h("code", {}, "hedgerow simulate mnist --out runs/first")),
  );
