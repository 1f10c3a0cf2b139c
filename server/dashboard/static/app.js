// The page: who is signed in, and which view the address asks for.

import { ApiError, readSession, session, SIGNED_OUT, signOut } from "./api.js";
import { openCompare } from "./compare.js";
import { announce, h, replace } from "./dom.js";
import { setLink, setOutage } from "./link.js";
import { openLogin } from "./login.js";
import { openRun } from "./run.js";
import { openRuns } from "./runs.js";
import { startTheme } from "./theme.js";

/** @typedef {{close: () => void}} View */

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const who = /** @type {HTMLElement} */ (document.getElementById("who"));
const leave = /** @type {HTMLButtonElement} */ (document.getElementById("leave"));

/** @type {View | null} */
let view = null;
let shown = "";

/** What the address asks for: #/, #/runs/ID, #/runs/ID/TAB, #/compare?a=ID&b=ID. */
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean).map(unescape), query: new URLSearchParams(query ?? "") };
}

/** @param {string} part */
function unescape(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function route() {
  const { parts, query } = place();
  const name = parts[0] ?? "runs";
  const key = name === "runs" ? `runs/${parts[1] ?? ""}` : name;
  for (const link of document.querySelectorAll("[data-nav]")) {
    if (link.getAttribute("data-nav") === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (session.login_required && !session.role) {
    open("login", () => openLogin(main, signedIn));
  } else if (name === "compare") {
    open(`${key}?${query}`, () => openCompare(main, query.get("a") ?? "", query.get("b") ?? ""));
  } else if (name === "runs" && parts[1]) {
    // Another tab of the same run keeps its connection and its figures.
    if (shown === key && view && "tab" in view) /** @type {any} */ (view).tab(parts[2] ?? "");
    else open(key, () => openRun(main, parts[1], parts[2] ?? ""));
  } else if (name === "runs") {
    open(key, () => openRuns(main));
  } else {
    open("nowhere", () => openNothing());
  }
}

/** @param {string} key @param {() => View} make */
function open(key, make) {
  if (shown === key) return;
  const first = shown === "";
  view?.close();
  shown = key;
  setLink("idle", "");
  setOutage("");
  view = make();
  scrollTo(0, 0);
  if (!first && key !== "login") main.focus({ preventScroll: true });
}

function openNothing() {
  document.title = "Not found · Hedgerow";
  replace(main, h("h1", {}, "No such page"), h("p", {}, h("a", { href: "#/" }, "All runs")));
  return { close() {} };
}

function signedIn() {
  showSession();
  announce(`Signed in as ${session.role}`);
  shown = "";
  route();
  main.focus({ preventScroll: true });
}

function showSession() {
  who.textContent = session.login_required && session.role ? session.role : "";
  leave.hidden = !(session.login_required && session.role);
}

leave.addEventListener("click", async () => {
  await signOut().catch(() => undefined);
  showSession();
  route();
});
document.addEventListener(SIGNED_OUT, async () => {
  await readSession().catch(() => undefined);
  showSession();
  if (session.login_required && !session.role) route();
});
addEventListener("hashchange", route);
// A link within the page that is no address of a view.
document.querySelector(".skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

async function start() {
  startTheme(/** @type {HTMLButtonElement} */ (document.getElementById("theme")));
  try {
    await readSession();
  } catch (error) {
    const reason = error instanceof ApiError ? error.message : String(error);
    replace(main, h("h1", {}, "Hedgerow"), h("p", { class: "notice bad", role: "alert" }, `${reason}; trying again…`));
    setTimeout(start, 3000);
    return;
  }
  showSession();
  route();
}
void start();
