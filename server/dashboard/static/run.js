// One run: its header, and a tab for each side of it.

import { ApiError, command, get, runPath, session } from "./api.js";
import { openDevices } from "./devices.js";
import { announce, h, refresh, replace } from "./dom.js";
import { openEvents } from "./events.js";
import { bytes, clock, count, duration, figure, known, percent, short } from "./format.js";
import { setLink, setOutage } from "./link.js";
import { openModels } from "./models.js";
import { openOverview } from "./overview.js";
import { confirmed, epsilon, meter, modeName, notice, pill, rounds, stateName } from "./parts.js";
import { openPrivacy } from "./privacy.js";
import { RunData } from "./run-data.js";
import { openSettings } from "./settings.js";
import { facts } from "./table.js";

/** @typedef {(place: HTMLElement, data: RunData) => {close: () => void}} OpenTab */

/** @type {{name: string, title: string, open: OpenTab}[]} */
const TABS = [
  { name: "", title: "Overview", open: openOverview },
  { name: "devices", title: "Devices", open: openDevices },
  { name: "privacy", title: "Privacy", open: openPrivacy },
  { name: "models", title: "Models", open: openModels },
  { name: "events", title: "Events", open: openEvents },
  { name: "settings", title: "Settings", open: openSettings },
];
const ANNOUNCE_MS = 30_000;
const OUTAGE_AFTER_MS = 2500;

/** @param {HTMLElement} main @param {string} id @param {string} tabName */
export function openRun(main, id, tabName) {
  document.title = `${id} · Hedgerow`;
  replace(main, h("h1", {}, id), h("p", { class: "waiting" }, "Loading…"));
  const data = new RunData(id);
  const head = h("div", { class: "run-head" });
  const tabs = h("nav", { class: "tabs", "aria-label": "Parts of this run" });
  const body = h("div", { class: "run-body" });
  /** @type {{close: () => void} | null} */
  let tab = null;
  let wanted = tabName;
  let opened = false;
  let hash = "";
  let announcedAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let outage;

  const showHead = () => refresh(head, header(data.run, hash, () => void stop(data)));
  const showTab = () => {
    const chosen = TABS.find((one) => one.name === wanted) ?? TABS[0];
    replace(tabs, TABS.map((one) => h("a", { href: address(id, one.name), "aria-current": one === chosen ? "page" : null }, one.title)));
    document.title = `${chosen.name ? `${chosen.title} · ` : ""}${data.run.name} · Hedgerow`;
    tab?.close();
    body.replaceChildren();
    tab = chosen.open(body, data);
  };
  const readHash = async () => {
    const models = await get(`${runPath(id)}/models`, data.abort.signal).catch(() => null);
    const now = models?.versions?.find((/** @type {any} */ one) => one.current)?.sha256 ?? data.run?.final?.model_sha256 ?? "";
    if (now === hash || data.abort.signal.aborted) return;
    hash = now;
    showHead();
  };
  const start = async () => {
    try {
      await data.open();
    } catch (error) {
      if (data.abort.signal.aborted) return;
      replace(main, h("h1", {}, id), failure(error, id));
      if (error instanceof ApiError && error.status === 0) setTimeout(() => data.abort.signal.aborted || start(), 3000);
      return;
    }
    if (data.abort.signal.aborted) return;
    replace(main, head, tabs, body);
    opened = true;
    showHead();
    showTab();
    void readHash();
  };

  let state = "";
  data.on((change, told) => {
    if (change === "link") {
      clearTimeout(outage);
      if (told.state === "live") {
        setLink("live", "Live");
        setOutage("");
      } else {
        setLink("waiting", "Reconnecting…");
        const seen = clock(data.heardAt / 1000);
        // A short gap is no news.
        outage = setTimeout(() => setOutage(`Not connected: ${told.reason}. Shown is what was known at ${seen}; the run itself goes on.`, () => data.stream?.retry()), OUTAGE_AFTER_MS);
      }
    }
    if (!opened) return;
    if (change === "run") {
      if (state && state !== data.run.state) announce(`Run ${data.run.name}: ${stateName(data.run.state)}`);
      state = data.run.state;
      showHead();
    }
    if (change === "round") {
      void readHash();
      if (told && Date.now() - announcedAt > ANNOUNCE_MS) {
        announcedAt = Date.now();
        const accuracy = known(told.accuracy) ? `, accuracy ${percent(told.accuracy)}` : "";
        announce(`Round ${told.round} of ${data.run.rounds} closed${accuracy}`);
      }
    }
  });
  void start();
  return {
    /** @param {string} name */
    tab(name) {
      wanted = name;
      if (opened) showTab();
    },
    close() {
      clearTimeout(outage);
      tab?.close();
      data.close();
    },
  };
}

/** @param {string} id @param {string} tab */
export const address = (id, tab) => `#/runs/${encodeURIComponent(id)}${tab ? `/${tab}` : ""}`;

/** @param {any} run @param {string} hash @param {() => void} onStop */
function header(run, hash, onStop) {
  const live = run.state === "running" || run.state === "paused";
  const what = [run.model, run.data && `on ${run.data}`].filter(Boolean).join(" ");
  const how = [run.strategy, modeName(run.mode), known(run.parameters) && `${count(run.parameters)} parameters`].filter(Boolean).join(", ");
  const spent = epsilon(run);
  /** @type {import("./table.js").Fact[]} */
  const pairs = [
    ["Round", rounds(run)],
    ["Accuracy", percent(run.accuracy)],
    ["Loss", figure(run.loss)],
    live ? ["Time left, about", known(run.eta_s) ? duration(run.eta_s) : words("not known yet")] : ["Took", duration(run.seconds)],
    ["Privacy", spent === null ? words("no differential privacy") : [privacyMeter(run, spent), h("span", { class: "sub" }, `epsilon, delta ${figure(run.delta)}`)], "wide"],
    ["Protection", words(run.protection || "none"), "wide"],
    ["Sent up", bytes(run.uplink_bytes)],
    ["Sent down", bytes(run.downlink_bytes)],
    ["Model", h("code", { title: hash || null }, short(hash))],
  ];
  return [
    h(
      "div",
      { class: "head" },
      h("div", { class: "grow" }, h("h1", {}, run.name, " ", pill(run.state)), h("p", { class: "sub" }, [what, how].filter(Boolean).join(" · "))),
      live && session.role === "admin" && h("button", { type: "button", class: "danger", onclick: onStop }, "Stop run"),
    ),
    run.error && notice(run.error, run.state === "paused" ? "warn" : "bad"),
    facts(pairs, "facts tiles"),
  ];
}

/** Words among figures. @param {string} text */
const words = (text) => h("span", { class: "words" }, text);

/** @param {any} run @param {string} text */
function privacyMeter(run, text) {
  if (!known(run.epsilon) || !known(run.epsilon_limit)) return text;
  return meter(run.epsilon, run.epsilon_limit, text, run.epsilon > 0.9 * run.epsilon_limit ? "high" : "");
}

/** @param {RunData} data */
async function stop(data) {
  const sure = await confirmed({
    title: `Stop ${data.run.name}?`,
    text: "The round in progress is still closed and the model is written; a roll-out in progress is halted. After that the run is over: it cannot be continued.",
    yes: "Stop run",
  });
  if (!sure) return;
  try {
    await command(data.id, "stop");
    announce("The run was asked to stop.");
    setOutage("The run was asked to stop; it ends when the round in progress is closed, or at once if it is paused.");
    setTimeout(() => setOutage(""), 8000);
  } catch (error) {
    setOutage(`The run was not stopped: ${error instanceof Error ? error.message : error}`);
  }
}

/** @param {unknown} error @param {string} id */
function failure(error, id) {
  const missing = error instanceof ApiError && error.status === 404;
  const text = missing ? `There is no run named ${id} in the folder that this dashboard watches.` : `This run cannot be shown: ${error instanceof Error ? error.message : error}.`;
  return h("div", { class: "blank card" }, h("p", { role: "alert" }, text), h("p", {}, h("a", { href: "#/" }, "All runs")));
}
