// The server's JSON, as promised by /openapi.json.

/**
 * @typedef {{login_required: boolean, role: "viewer" | "admin" | null, csrf: string | null}} Session
 * @typedef {Record<string, any>} Json
 */

/** An answer that is not the one wanted. `status` 0: there was none. */
export class ApiError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Fired on `document` when the server no longer knows us. */
export const SIGNED_OUT = "hedgerow:signed-out";

/** @type {Session} */
export let session = { login_required: false, role: null, csrf: null };

export async function readSession() {
  session = /** @type {Session} */ (await call("GET", "session"));
  return session;
}

/** @param {string} token */
export async function signIn(token) {
  await call("POST", "session", { token });
  return readSession();
}

export async function signOut() {
  await call("DELETE", "session");
  return readSession();
}

/** @param {string} path below /api @param {AbortSignal} [signal] @returns {Promise<Json>} */
export const get = (path, signal) => call("GET", path, undefined, signal);

/** @param {string} run @param {"stop" | "rollout_approve" | "rollout_halt"} name */
export const command = (run, name) => call("POST", `${runPath(run)}/commands`, { name });

/** @param {string} run */
export const runPath = (run) => `runs/${encodeURIComponent(run)}`;

/** Relative, so that the page also works below a path of a proxy. @param {string} path */
export const url = (path) => new URL(`api/${path}`, document.baseURI).href;

/** @param {string} method @param {string} path @param {Json} [body] @param {AbortSignal} [signal] @returns {Promise<Json>} */
async function call(method, path, body, signal) {
  /** @type {Record<string, string>} */
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (method !== "GET" && session.csrf) headers["X-CSRF-Token"] = session.csrf;
  let answer;
  try {
    answer = await fetch(url(path), { method, headers, body: body && JSON.stringify(body), signal, credentials: "same-origin" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "the dashboard server does not answer");
  }
  const content = await answer.json().catch(() => ({}));
  if (answer.ok) return content;
  if (answer.status === 401 && path !== "session") document.dispatchEvent(new Event(SIGNED_OUT));
  throw new ApiError(answer.status, typeof content.error === "string" ? content.error : `the server answered ${answer.status}`);
}
