// The round strip: of those asked, who answered, who was late, declined or was lost; against the goal and the deadline.

import { h } from "./dom.js";
import { count, duration, known, plural } from "./format.js";
import { modeName } from "./parts.js";

const PARTS = [
  { name: "received", title: "Received", kind: "good" },
  { name: "late", title: "Late", kind: "late" },
  { name: "declined", title: "Declined", kind: "declined" },
  { name: "dropped", title: "Dropped", kind: "lost" },
];

/**
 * @param {any} run
 * @param {any[]} rows closed rounds
 * @param {number | null} plannedAt Unix seconds of when the round in progress began, where that is known
 */
export function strip(run, rows, plannedAt) {
  if (run.now) return inProgress(run, plannedAt);
  const last = rows[rows.length - 1];
  if (!last) return [h("h2", { id: "now-title" }, waitingTitle(run)), h("p", { class: "sub" }, waitingText(run))];
  const now = { ...last, received: last.clients, asked: last.clients + (last.dropped ?? 0) + (last.late ?? 0) + (last.declined ?? 0) };
  return [
    h("h2", { id: "now-title" }, `Round ${count(last.round)}, the last one closed`),
    bar(now),
    tally(now),
    last.applied === false && h("p", { class: "sub" }, `The model stayed as it was: ${last.unchanged}`),
  ];
}

/** @param {any} run @param {number | null} plannedAt */
function inProgress(run, plannedAt) {
  const { now } = run;
  return [
    h("h2", { id: "now-title" }, `Round ${count(now.round)} in progress`, h("span", { class: "sub inline" }, modeName(now.mode))),
    bar(now),
    tally(now),
    known(now.deadline_s) && deadline(now.deadline_s, plannedAt),
  ];
}

/** @param {any} now */
function bar(now) {
  const waiting = Math.max(0, now.asked - PARTS.reduce((sum, part) => sum + (now[part.name] ?? 0), 0));
  const pieces = [...PARTS.map((part) => ({ ...part, n: now[part.name] ?? 0 })), { name: "waiting", title: "Waiting", kind: "waiting", n: waiting }].filter((piece) => piece.n > 0);
  const words = pieces.map((piece) => `${piece.n} ${piece.title.toLowerCase()}`).join(", ");
  const goal = known(now.goal) && now.goal > 0 && now.goal < now.asked ? h("span", { class: "goal", title: `Goal: ${now.goal}` }) : null;
  if (goal) goal.style.left = `${(100 * now.goal) / now.asked}%`;
  const node = h("div", { class: "stack", role: "img", "aria-label": `Of ${now.asked} asked: ${words || "nothing yet"}` }, pieces.map((piece) => segment(piece)), goal);
  return node;
}

/** @param {{kind: string, n: number, title: string}} piece */
function segment({ kind, n, title }) {
  const node = h("span", { "data-kind": kind, title: `${title}: ${n}` });
  node.style.flexGrow = String(n);
  return node;
}

/** @param {any} now */
function tally(now) {
  const goal = known(now.goal) && now.goal > 0 ? ` of ${count(now.goal)} wanted` : "";
  return h(
    "ol",
    { class: "steps" },
    h("li", {}, h("span", { class: "n" }, count(now.asked)), " asked"),
    PARTS.map((part) => known(now[part.name]) && h("li", { "data-kind": part.kind }, h("span", { class: "n" }, count(now[part.name])), ` ${part.title.toLowerCase()}${part.name === "received" ? goal : ""}`)),
  );
}

/** @param {number} seconds @param {number | null} plannedAt */
function deadline(seconds, plannedAt) {
  if (!known(plannedAt)) return h("p", { class: "sub" }, `Deadline: ${duration(seconds)} from its start`);
  const gone = Math.max(0, Date.now() / 1000 - plannedAt);
  const left = seconds - gone;
  return h("p", { class: "sub" }, left > 0 ? `${duration(gone)} of ${duration(seconds)} until the deadline` : `The deadline of ${duration(seconds)} is over; the round closes`);
}

/** @param {any} run */
const waitingTitle = (run) => (run.state === "running" || run.state === "paused" ? "Waiting for the first round" : "No round was closed");

/** @param {any} run */
const waitingText = (run) =>
  run.state === "running" ? `${plural(run.rounds, "round")} to come. Clients are being asked.` : "There are no figures to show.";
