// Versions of the model, the files made of the last one, and how far they have come among the devices.

import { command, get, runPath, session, url } from "./api.js";
import { announce, h, refresh, replace } from "./dom.js";
import { bytes, count, duration, figure, memory, percent, short } from "./format.js";
import { confirmed, notice } from "./parts.js";
import { rolloutCard } from "./rollout.js";
import { table } from "./table.js";

const SOON_MS = 500;

/** @param {HTMLElement} place @param {import("./run-data.js").RunData} data */
export function openModels(place, data) {
  const stop = new AbortController();
  const problem = h("div", { role: "alert" });
  const rollout = h("section", { class: "card", "aria-labelledby": "rollout-title", hidden: true });
  const versions = h("div", { class: "card flush" }, h("p", { class: "waiting" }, "Loading…"));
  const artefacts = h("div", { class: "card flush" });
  replace(place, problem, rollout, h("h2", {}, "Versions"), versions, h("h2", {}, "Artefacts"), artefacts);
  /** @type {ReturnType<typeof setTimeout>} */
  let timer;

  const act = async (/** @type {"rollout_approve" | "rollout_halt"} */ name) => {
    const halt = name === "rollout_halt";
    const sure = await confirmed({
      title: halt ? "Halt the roll-out?" : "Go on to the next stage?",
      text: halt ? "No further device is offered this version, and those that have it are ordered back to the one before." : "The devices of the next stage are offered this version.",
      yes: halt ? "Halt" : "Approve",
    });
    if (!sure) return;
    try {
      await command(data.id, name);
      announce(halt ? "The roll-out was asked to halt." : "The next stage was approved.");
      replace(problem, notice(halt ? "Asked to halt." : "Approved; the next stage begins shortly."));
    } catch (error) {
      replace(problem, notice(`That was not accepted: ${error instanceof Error ? error.message : error}.`, "bad"));
    }
  };
  const load = async () => {
    try {
      const answer = await get(`${runPath(data.id)}/models`, stop.signal);
      rollout.hidden = !answer.rollout;
      if (answer.rollout) refresh(rollout, rolloutCard(answer.rollout, data.run, session.role === "admin" ? act : null));
      refresh(versions, table({ caption: "Versions of the model", columns: VERSIONS(data.id), rows: answer.versions ?? [], nothing: "No version is kept yet; the first comes with the first closed round." }));
      refresh(artefacts, table({ caption: "Files made of the model", columns: ARTEFACTS(data.id), rows: answer.artefacts ?? [], nothing: "Files for devices are made when the run ends." }));
    } catch (error) {
      if (!stop.signal.aborted) replace(problem, notice(`Models cannot be listed: ${error instanceof Error ? error.message : error}.`, "bad"));
    }
  };
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(load, SOON_MS);
  };
  const off = data.on((change, told) => {
    if (change === "round" || change === "run" || (change === "event" && /^(rollout|artefact|export)/.test(told.kind))) soon();
  });
  void load();
  return {
    close() {
      off();
      stop.abort();
      clearTimeout(timer);
    },
  };
}

/** A file of the run; a saved file, never a page. @param {string} run @param {string} name @param {string} label */
const download = (run, name, label) =>
  h("a", { href: url(`${runPath(run)}/files/${name.split("/").map(encodeURIComponent).join("/")}`), download: name.split("/").pop(), "aria-label": `Download ${name}` }, label);

/** @param {string} run @returns {import("./table.js").Column<any>[]} */
const VERSIONS = (run) => [
  { head: "Version", row: true, cell: (one) => [h("code", { title: one.sha256 }, short(one.sha256)), one.current && h("span", { class: "badge" }, "current")] },
  { head: "Round", number: true, cell: (one) => count(one.round) },
  { head: "Accuracy", number: true, cell: (one) => percent(one.accuracy) },
  { head: "Loss", number: true, cell: (one) => figure(one.loss) },
  { head: "Size", number: true, cell: (one) => bytes(one.bytes) },
  { head: "File", cell: (one) => download(run, one.file ?? `models/${one.sha256}.safetensors`, "safetensors") },
];

/** @param {string} run @returns {import("./table.js").Column<any>[]} */
const ARTEFACTS = (run) => [
  { head: "File", row: true, cell: (one) => (one.refused ? h("span", {}, one.file) : download(run, one.file, one.file)) },
  { head: "Format", cell: (one) => [one.format, h("span", { class: "sub" }, one.precision)] },
  { head: "Size", number: true, cell: (one) => bytes(one.bytes) },
  { head: "Accuracy", number: true, cell: (one) => percent(one.accuracy) },
  { head: "Agrees", number: true, cell: (one) => percent(one.agreement), title: "Share of examples that it judges as the float32 model does" },
  { head: "Latency", number: true, cell: (one) => (one.latency_us === null || one.latency_us === undefined ? duration(null) : duration(one.latency_us / 1e6)) },
  { head: "Peak memory", number: true, cell: (one) => memory(one.peak_rss_bytes) },
  { head: "Gate", cell: (one) => (one.refused ? [h("span", { class: "flag" }, "refused"), h("span", { class: "sub" }, typeof one.refused === "string" ? one.refused : "")] : h("span", { class: "ok" }, "passed")) },
];
