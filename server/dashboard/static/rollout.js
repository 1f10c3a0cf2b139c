// How far a version has come among the devices, stage by stage.

import { h } from "./dom.js";
import { bytes, count, plural } from "./format.js";
import { meter, notice } from "./parts.js";
import { facts, table } from "./table.js";

/**
 * @param {any} rollout
 * @param {any} run
 * @param {((name: "rollout_approve" | "rollout_halt") => void) | null} act null: may not
 */
export function rolloutCard(rollout, run, act) {
  if (rollout.error) return [h("h2", { id: "rollout-title" }, "Roll-out"), notice(`It failed: ${rollout.error}`, "warn")];
  const live = run.state === "running" || run.state === "paused";
  const waiting = live && rollout.state === "waiting";
  const open = live && (waiting || rollout.state === "running");
  const stages = rollout.stages ?? [];
  return [
    h(
      "div",
      { class: "head" },
      h("h2", { id: "rollout-title", class: "grow" }, `Roll-out of version ${rollout.version ?? ""}`, h("span", { class: "sub inline" }, open || !(rollout.state in OPEN) ? (STATES[rollout.state] ?? rollout.state) : "broke off with the run")),
      act && open && [
        waiting && h("button", { type: "button", class: "primary", onclick: () => act("rollout_approve") }, "Approve next stage"),
        h("button", { type: "button", class: "danger", onclick: () => act("rollout_halt") }, "Halt roll-out"),
      ],
    ),
    rollout.halted && notice(`Halted: ${rollout.halted}`, "bad"),
    facts([
      ["Format", rollout.format || "–"],
      ["Size", bytes(rollout.bytes ?? rollout.nbytes)],
      ...places(rollout.devices),
    ]),
    table({ caption: "Stages of the roll-out", columns: COLUMNS, rows: stages, nothing: "No stage is closed yet." }),
    fleet(rollout.versions),
  ];
}

/** @type {Record<string, string>} */
const OPEN = { running: "under way", waiting: "waits for approval of the next stage" };
/** @type {Record<string, string>} */
const STATES = { ...OPEN, halted: "halted", finished: "finished", failed: "failed" };

/** @param {Record<string, number> | undefined} devices @returns {[string, string][]} */
const places = (devices) => Object.entries(devices ?? {}).map(([place, n]) => [`${place.charAt(0).toUpperCase()}${place.slice(1)}`, count(n)]);

/** @param {Record<string, number> | undefined} versions */
function fleet(versions) {
  const all = Object.entries(versions ?? {});
  if (!all.length) return null;
  const words = all.map(([version, n]) => `${plural(n, "device")} ${version === "0" ? "without a model" : version === "unknown" ? "that never said" : `on version ${version}`}`);
  return h("p", { class: "sub" }, `In the fleet: ${words.join(", ")}`);
}

/** @type {import("./table.js").Column<any>[]} */
const COLUMNS = [
  { head: "Stage", row: true, cell: (stage) => `${stage.percent} %` },
  { head: "Run it", cell: (stage) => meter(stage.installed, stage.offered, `${count(stage.installed)} of ${count(stage.offered)}`) },
  { head: "Refused", number: true, cell: (stage) => count(stage.refused) },
  { head: "Silent", number: true, cell: (stage) => count(stage.silent) },
  { head: "Rolled back", number: true, cell: (stage) => count(stage.rolled_back) },
  { head: "Verdict", cell: (stage) => (stage.good ? h("span", { class: "ok" }, "good") : h("span", { class: "flag" }, "halted here")) },
];
