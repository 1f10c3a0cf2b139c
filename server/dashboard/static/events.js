// The log of a run, newest first; what happens now is added on top.

import { get, runPath } from "./api.js";
import { h, replace } from "./dom.js";
import { bytes, clock, figure, moment, percent, plain } from "./format.js";
import { field, notice } from "./parts.js";

const PAGE = 100;
const MOST_LINES = 2000;
const FRESH = 60; // lines a second that are drawn; the rest of a burst is read again

/** @param {HTMLElement} place @param {import("./run-data.js").RunData} data */
export function openEvents(place, data) {
  const stop = new AbortController();
  /** @type {Set<number>} */
  const shown = new Set();
  let oldest = 0;
  const list = h("ol", { class: "log" });
  const problem = h("div", { role: "alert" });
  const more = h("button", { type: "button", onclick: () => void load() }, "Older events");
  const kind = h("select", { id: "event-kind", onchange: () => restart() }, h("option", { value: "" }, "All kinds"), KINDS.map((one) => h("option", { value: one }, title(one))));
  const words = h("input", { id: "event-text", type: "search", placeholder: "Client, reason", spellcheck: "false", oninput: () => sift() });
  const nothing = h("p", { class: "empty-line", hidden: true }, "No such event.");
  replace(
    place,
    h("div", { class: "head tools" }, h("h2", { class: "grow" }, "Events"), field("Kind", kind), field("Filter", words)),
    problem,
    h("div", { class: "card flush" }, list, nothing),
    h("p", { class: "pager" }, more),
  );

  /** @param {any} event */
  const fits = (event) => !kind.value || event.kind === kind.value;
  const sift = () => {
    const text = words.value.trim().toLowerCase();
    for (const item of list.children) item.hidden = Boolean(text) && !item.textContent.toLowerCase().includes(text);
    nothing.hidden = [...list.children].some((item) => !item.hidden);
  };
  const restart = () => {
    shown.clear();
    oldest = 0;
    list.replaceChildren();
    void load();
  };
  let asking = 0;
  const load = async () => {
    const mine = (asking += 1);
    const query = new URLSearchParams({ limit: String(PAGE) });
    if (oldest) query.set("before", String(oldest));
    if (kind.value) query.set("kind", kind.value);
    try {
      const { events } = await get(`${runPath(data.id)}/events?${query}`, stop.signal);
      if (mine !== asking) return;
      replace(problem);
      for (const event of events) {
        oldest = event.id;
        if (shown.has(event.id)) continue;
        shown.add(event.id);
        list.append(line(event));
      }
      more.hidden = events.length < PAGE || list.children.length >= MOST_LINES;
      sift();
    } catch (error) {
      if (!stop.signal.aborted) replace(problem, notice(`Events cannot be read: ${error instanceof Error ? error.message : error}.`, "bad"));
    }
  };
  /** @type {any[]} */
  let fresh = [];
  const off = data.on((change, event) => {
    if (change === "reset") restart(); // too much was missed to be told one by one
    if (change !== "event" || shown.has(event.id) || !fits(event)) return;
    shown.add(event.id);
    fresh.push(event);
  });
  const tick = setInterval(() => {
    if (!fresh.length) return;
    if (fresh.length > FRESH) {
      fresh = [];
      restart();
      return;
    }
    list.prepend(...fresh.reverse().map(line));
    fresh = [];
    while (list.children.length > MOST_LINES) list.lastElementChild.remove();
    sift();
  }, 1000);
  void load();
  return {
    close() {
      clearInterval(tick);
      off();
      stop.abort();
    },
  };
}

const KINDS = [
  "run_started", "run_resumed", "run_paused", "run_continued", "run_finished", "run_failed", "command",
  "round_planned", "clients_asked", "round_closed", "update_received", "client_dropped", "client_late", "client_declined",
  "privacy_spent", "checkpoint", "artefact", "export_failed", "evaluation_failed",
  "rollout_started", "rollout_order", "rollout_device", "rollout_stage", "rollout_halted", "rollout_finished", "rollout_failed",
];
const BAD = /failed|halted|dropped/;
const WORTH_A_LOOK = /late|declined|paused|resumed|command/;

/** @param {string} kind */
const title = (kind) => `${kind.charAt(0).toUpperCase()}${kind.slice(1).replaceAll("_", " ")}`;

/** @param {any} event */
function line(event) {
  const told = event.lost ? "lost" : BAD.test(event.kind) ? "bad" : WORTH_A_LOOK.test(event.kind) ? "warn" : "";
  const rest = JSON.stringify(event.data, null, 1);
  return h(
    "li",
    { class: told },
    h("time", { title: moment(event.unix_s), datetime: new Date(1000 * event.unix_s).toISOString() }, clock(event.unix_s)),
    h("span", { class: "kind" }, title(event.kind)),
    h("span", { class: "round" }, event.round === null || event.round === undefined ? "" : `round ${event.round}`),
    h("span", { class: "what" }, inWords(event), event.lost && h("span", { class: "badge" }, "lost attempt")),
    rest.length > 2 && h("details", {}, h("summary", { "aria-label": `All of event ${event.id}` }, "…"), h("pre", {}, rest)),
  );
}

/** The event's data in a few words. @param {any} event @returns {string} */
function inWords({ kind, data }) {
  const tell = TELL[kind];
  if (tell) return tell(data);
  return Object.entries(data ?? {}).slice(0, 4).map(([name, value]) => `${name} ${plain(value).slice(0, 60)}`).join(", ");
}

/** @type {Record<string, (data: any) => string>} */
const TELL = {
  run_started: (data) => [data["model.name"] ?? data["model.entry"], data["data.name"], `${data["server.rounds"] ?? "?"} rounds`].filter(Boolean).join(", "),
  run_resumed: (data) => `goes on after round ${data.round}, ${data.lost_events ?? 0} events count for nothing`,
  run_finished: (data) => `accuracy ${percent(data.accuracy)}, loss ${figure(data.loss)}`,
  run_failed: (data) => String(data.error ?? ""),
  run_paused: (data) => String(data.reason ?? ""),
  run_continued: (data) => String(data.reason ?? ""),
  command: (data) => `${title(String(data.name ?? ""))}, asked by ${data.by ?? "someone"}`,
  round_planned: (data) => `${data.asked?.length ?? data.asked ?? 0} clients asked, ${data.goal ?? "?"} updates wanted`,
  clients_asked: (data) => `${data.asked?.length ?? 0} further clients asked`,
  round_closed: (data) => `accuracy ${percent(data.accuracy)}, loss ${figure(data.loss)}, ${data.clients} clients, ${data.dropped} dropped`,
  update_received: (data) => `${data.client}, ${bytes(data.bytes)}`,
  client_dropped: (data) => `${data.client}${data.phase ? ` in ${data.phase}` : ""}: ${data.reason ?? ""}`,
  client_late: (data) => `${data.client}: ${data.reason ?? ""}`,
  client_declined: (data) => `${data.client}: ${data.reason ?? ""}`,
  privacy_spent: (data) => `epsilon ${figure(data.epsilon)}`,
  export_failed: (data) => String(data.error ?? ""),
  rollout_failed: (data) => String(data.error ?? ""),
  rollout_halted: (data) => String(data.reason ?? ""),
  rollout_device: (data) => `${data.client}: ${data.place ?? ""}${data.reason ? `, ${data.reason}` : ""}`,
  rollout_order: (data) => `${data.ask}: ${data.devices?.length ?? 0} devices`,
  rollout_stage: (data) => `${data.percent} %: ${data.installed} of ${data.offered} run it`,
};
