// Versions of the model, the files made of the last one, and how far they have come among the devices.

import { command, get, runPath, session, url } from "./api.js";
import { h, refresh, replace } from "./dom.js";
import { bytes, count, duration, figure, memory, percent, short, UNKNOWN } from "./format.js";
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
  const others = h("p", { class: "sub" });
  replace(place, problem, rollout, h("h2", {}, "Versions"), versions, h("h2", {}, "Artefacts"), artefacts, others);
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
      refresh(versions, table({ caption: "Versions of the model", columns: VERSIONS(data.id, answer.downloads ?? []), rows: answer.versions ?? [], nothing: "No version is kept yet; the first comes with the first closed round." }));
      refresh(artefacts, table({ caption: "Files made of the model", columns: ARTEFACTS(data.id, answer.downloads ?? []), rows: answer.artefacts ?? [], nothing: "Files for devices are made when the run ends." }));
      const listed = new Set(answer.artefacts.map((/** @type {any} */ one) => one.file));
      const rest = answer.downloads.filter((/** @type {string} */ name) => !listed.has(name) && !name.startsWith("models/"));
      refresh(others, rest.length > 0 && "Other files: ", rest.flatMap((/** @type {string} */ name, /** @type {number} */ i) => [i > 0 && ", ", download(data.id, name, name)]));
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

/** @param {string} run @param {string[]} files @returns {import("./table.js").Column<any>[]} */
const VERSIONS = (run, files) => [
  { head: "Version", row: true, cell: (one) => [h("code", { title: one.sha256 }, short(one.sha256)), one.current && h("span", { class: "badge" }, "current")] },
  { head: "Round", number: true, cell: (one) => count(one.round) },
  { head: "Accuracy", number: true, cell: (one) => percent(one.accuracy) },
  { head: "Loss", number: true, cell: (one) => figure(one.loss) },
  { head: "Size", number: true, cell: (one) => bytes(one.bytes) },
  {
    head: "File",
    cell: (one) => {
      const name = [`models/${one.sha256}.safetensors`, one.current && "model.safetensors"].find((file) => file && files.includes(file));
      return name ? download(run, name, "safetensors") : UNKNOWN;
    },
  },
];

/** @param {string} run @param {string[]} files @returns {import("./table.js").Column<any>[]} */
const ARTEFACTS = (run, files) => [
  { head: "File", row: true, cell: (one) => (files.includes(one.file) ? download(run, one.file, one.file) : one.file) },
  { head: "Format", cell: (one) => [one.format, h("span", { class: "sub" }, one.precision)] },
  { head: "Size", number: true, cell: (one) => bytes(one.bytes) },
  { head: "Accuracy", number: true, cell: (one) => percent(one.accuracy) },
  { head: "Agrees", number: true, cell: (one) => percent(one.agreement), title: "Share of examples that it judges as the float32 model does" },
  { head: "Latency", number: true, cell: (one) => (one.latency_us === null || one.latency_us === undefined ? duration(null) : duration(one.latency_us / 1e6)) },
  { head: "Peak memory", number: true, cell: (one) => memory(one.peak_rss_bytes) },
  { head: "Gate", cell: (one) => (one.refused ? [h("span", { class: "flag" }, "refused"), h("span", { class: "sub" }, typeof one.refused === "string" ? one.refused : "")] : h("span", { class: "ok" }, "passed")) },
];
