// The devices of a run: a page of a hundred at a time, sorted and filtered by the server.

import { get, runPath } from "./api.js";
import { announce, h, refresh, replace } from "./dom.js";
import { ago, count, duration, known, memory, moment, plural, UNKNOWN } from "./format.js";
import { field, meter, notice } from "./parts.js";
import { table } from "./table.js";

const PAGE = 100;
const EVERY_MS = 10_000;
const TYPING_MS = 250;
const MOST_FILTER = 200;
/** Words that the server's filter knows. */
const KINDS = [["", "All"], ["is:online", "Online"], ["is:offline", "Offline"], ["is:eligible", "May train"], ["is:ineligible", "May not train"], ["is:throttled", "Throttled"]];

/** @param {HTMLElement} place @param {import("./run-data.js").RunData} data */
export function openDevices(place, data) {
  const asked = { page: 0, sort: "seen_s", order: "desc", filter: "" };
  const stop = new AbortController();
  /** @type {ReturnType<typeof setTimeout>} */
  let timer;
  const tally = h("p", { class: "tally", role: "status" });
  const versions = h("p", { class: "sub" });
  const list = h("div", { class: "card flush" }, h("p", { class: "waiting" }, "Loading devices…"));
  const pager = h("nav", { class: "pager", "aria-label": "Pages of devices" });
  const box = h("input", { id: "device-filter", type: "search", placeholder: "Name, version, reason", spellcheck: "false", oninput: () => later(TYPING_MS, sift) });
  const kind = h("select", { id: "device-kind", onchange: () => sift() }, KINDS.map(([word, name]) => h("option", { value: word }, name)));
  replace(place, h("div", { class: "head tools" }, h("h2", {}, "Devices"), tally, field("Show", kind), field("Filter", box)), versions, list, pager);

  /** @param {Partial<typeof asked>} change */
  const ask = (change) => {
    Object.assign(asked, change);
    void load();
  };
  const sift = () => ask({ filter: `${kind.value} ${box.value}`.trim().slice(0, MOST_FILTER), page: 0 });
  /** @param {number} ms @param {() => void} act */
  const later = (ms, act) => {
    clearTimeout(timer);
    timer = setTimeout(act, ms);
  };
  /** @param {string} by */
  const sortBy = (by) => {
    const order = asked.sort === by ? (asked.order === "asc" ? "desc" : "asc") : FALLING.has(by) ? "desc" : "asc";
    ask({ sort: by, order, page: 0 });
    announce(`Sorted by ${by}, ${order === "asc" ? "rising" : "falling"}`);
  };
  let asking = 0;
  const load = async () => {
    const mine = (asking += 1);
    clearTimeout(timer);
    const query = new URLSearchParams({ page: String(asked.page), sort: asked.sort, order: asked.order, filter: asked.filter });
    try {
      const answer = await get(`${runPath(data.id)}/devices?${query}`, stop.signal);
      if (mine === asking) show(answer);
    } catch (error) {
      if (stop.signal.aborted || mine !== asking) return;
      replace(list, notice(`Devices cannot be listed: ${error instanceof Error ? error.message : error}.`, "bad"));
    }
    if (!stop.signal.aborted && mine === asking) later(EVERY_MS, load);
  };
  /** @param {any} answer */
  const show = ({ total, counts, devices }) => {
    tally.textContent = `${plural(total, "device")}${asked.filter ? " found" : ""}: ${count(counts.online)} online, ${count(counts.eligible)} may train`;
    const running = Object.entries(counts.running_versions ?? {});
    versions.textContent = running.length ? `Model versions that run on devices: ${running.map(([version, n]) => `${version === "0" ? "none" : version} on ${count(/** @type {number} */ (n))}`).join(", ")}` : "";
    const nothing = asked.filter ? "No device fits the filter." : "No device was heard of in this run. Simulated clients report no device figures.";
    refresh(list, table({ caption: "Devices of this run", columns: COLUMNS, rows: devices, sorted: { by: asked.sort, order: /** @type {any} */ (asked.order) }, onsort: sortBy, nothing }));
    const pages = Math.max(1, Math.ceil(total / PAGE));
    const go = (/** @type {number} */ page, /** @type {string} */ text, /** @type {string} */ name) =>
      h("button", { type: "button", "data-key": name, disabled: page < 0 || page >= pages || page === asked.page, onclick: () => ask({ page }) }, text);
    refresh(
      pager,
      pages > 1 && [
        go(0, "First", "first"),
        go(asked.page - 1, "Previous", "previous"),
        h("span", {}, `${count(asked.page * PAGE + 1)} to ${count(Math.min(total, (asked.page + 1) * PAGE))} of ${count(total)}`),
        go(asked.page + 1, "Next", "next"),
        go(pages - 1, "Last", "last"),
      ],
    );
  };
  void load();
  return {
    close() {
      stop.abort();
      clearTimeout(timer);
    },
  };
}

/** Sorted from the highest on at first. */
const FALLING = new Set(["seen_s", "rounds", "dropped", "late", "declined", "temperature_c", "rss_peak", "seconds"]);

/** @type {import("./table.js").Column<any>[]} */
const COLUMNS = [
  { head: "Device", sort: "node", row: true, cell: ({ node, report }) => [h("span", { class: "strong" }, report?.name || node), report?.name && h("span", { class: "sub" }, node)] },
  { head: "Last seen", sort: "seen_s", cell: (device) => h("span", { title: moment(device.seen_s) }, ago(device.seen_s)) },
  { head: "May train", sort: "eligible", cell: (device) => mayTrain(device) },
  { head: "Memory", sort: "rss_peak", cell: ({ report }) => memoryOf(report ?? {}), title: "The most that was in use, of its budget" },
  { head: "Heat", sort: "temperature_c", cell: ({ report }) => heat(report ?? {}) },
  { head: "Rounds", sort: "rounds", number: true, cell: (device) => count(device.rounds), title: "Updates taken from it" },
  { head: "Dropped", sort: "dropped", number: true, cell: (device) => [count(device.dropped), ...phases(device.dropped_in)] },
  { head: "Late", sort: "late", number: true, cell: (device) => count(device.late) },
  { head: "Declined", sort: "declined", number: true, cell: (device) => count(device.declined) },
  { head: "Round time", sort: "seconds", number: true, cell: (device) => duration(device.seconds) },
  { head: "Version", sort: "version", cell: (device) => versions(device) },
  { head: "Power", cell: ({ report }) => [report?.power || UNKNOWN, report?.under_voltage && h("span", { class: "flag second" }, "under-voltage"), report?.metered && h("span", { class: "sub" }, "metered network")] },
  { head: "Last reason", cell: (device) => h("span", { class: "reason", title: device.last_reason || null }, device.last_reason || UNKNOWN) },
];

/** Of the client program, and of the model that it runs. @param {any} device */
function versions({ report, running }) {
  const program = [report?.version, report?.arch].filter(Boolean).join(", ") || UNKNOWN;
  return [program, known(running) && h("span", { class: "sub" }, running === 0 ? "runs no model" : `runs model ${count(running)}`)];
}

/** @param {any} device */
function mayTrain({ eligible, why_not: why, retry_s: retry }) {
  if (eligible === undefined || eligible === null) return UNKNOWN;
  if (eligible) return h("span", { class: "ok" }, "Yes");
  const when = known(retry) && retry > Date.now() / 1000 ? `, again in ${duration(retry - Date.now() / 1000)}` : "";
  return [h("span", { class: "flag" }, "No"), h("span", { class: "sub" }, `${why || "no reason given"}${when}`)];
}

/** @param {any} report */
function memoryOf({ rss, rss_peak: peak, memory_budget: budget, memory_available: available }) {
  if (!known(rss) && !known(budget)) return known(available) ? `${memory(available)} free` : UNKNOWN;
  const used = known(peak) ? peak : rss;
  const text = known(budget) ? `${memory(used)} of ${memory(budget)}` : memory(used);
  return known(used) && known(budget) && budget > 0 ? meter(used, budget, text, used > budget ? "high" : "") : text;
}

/** @param {any} report */
function heat({ temperature_c: celsius, throttled }) {
  return [known(celsius) ? `${celsius.toFixed(0)} °C` : throttled ? "" : UNKNOWN, throttled && h("span", { class: "flag second" }, "throttled")];
}

/** @param {Record<string, number> | undefined} dropped */
const phases = (dropped) => Object.entries(dropped ?? {}).map(([phase, n]) => h("span", { class: "sub" }, `${phase.replaceAll("_", " ")} ${count(n)}`));
