// Server-sent events over fetch: unlike EventSource it says why it failed, and goes on from an id of our choosing.

import { SIGNED_OUT, url } from "./api.js";

/**
 * @typedef {{kind: string, id: string, data: string}} Message
 * @typedef {{state: "live"} | {state: "waiting", retryAt: number, reason: string}} Link
 */

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 30_000;
// The server sends a comment every 15 s; a connection that says nothing for longer is dead, whatever TCP thinks.
const SILENCE_MS = 40_000;

/**
 * Cuts a text that arrives in pieces into messages (HTML standard, section 9.2.6).
 * @param {(message: Message) => void} tell
 */
export function parser(tell) {
  let rest = "";
  let id = "";
  let kind = "";
  /** @type {string[]} */
  let data = [];
  /** @param {string} line */
  const take = (line) => {
    if (line === "") {
      if (data.length) tell({ kind: kind || "message", id, data: data.join("\n") });
      kind = "";
      data = [];
      return;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") data.push(value);
    else if (name === "event") kind = value;
    else if (name === "id") id = value;
  };
  /** @param {string} piece */
  return (piece) => {
    const lines = (rest + piece).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? "";
    lines.forEach(take);
  };
}

/** One run's events, for as long as it is open; connects again by itself. */
export class Stream {
  /**
   * @param {string} run
   * @param {(kind: string, data: any) => void} onMessage
   * @param {(link: Link) => void} onLink
   */
  constructor(run, onMessage, onLink) {
    this.run = run;
    this.onMessage = onMessage;
    this.onLink = onLink;
    this.lastId = "";
    this.waitMs = FIRST_WAIT_MS;
    this.abort = new AbortController();
    this.closed = false;
    void this.keepOpen();
  }

  close() {
    this.closed = true;
    this.abort.abort();
    this.wake?.();
  }

  /** Try now, not when the wait is over. */
  retry() {
    this.waitMs = FIRST_WAIT_MS;
    this.wake?.();
  }

  async keepOpen() {
    while (!this.closed) {
      let reason = "the connection ended";
      try {
        await this.readOnce();
      } catch (error) {
        reason = error instanceof Error && !(error instanceof TypeError) ? error.message : "the dashboard server does not answer";
      }
      if (this.closed) return;
      this.onLink({ state: "waiting", retryAt: Date.now() + this.waitMs, reason });
      await this.sleep(this.waitMs);
      this.waitMs = Math.min(2 * this.waitMs, LONGEST_WAIT_MS);
    }
  }

  async readOnce() {
    this.abort = new AbortController();
    /** @type {Record<string, string>} */
    const headers = { Accept: "text/event-stream" };
    if (this.lastId) headers["Last-Event-ID"] = this.lastId;
    const path = url(`stream?run=${encodeURIComponent(this.run)}`);
    const answer = await fetch(path, { headers, signal: this.abort.signal, cache: "no-store", credentials: "same-origin" });
    if (answer.status === 401) document.dispatchEvent(new Event(SIGNED_OUT));
    if (!answer.ok || !answer.body) throw new Error(`the server answered ${answer.status}`);
    this.waitMs = FIRST_WAIT_MS;
    this.onLink({ state: "live" });
    const take = parser((message) => this.hear(message));
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const watch = setTimeout(() => this.abort.abort(), SILENCE_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(watch));
      if (done) return;
      take(value);
    }
  }

  /** @param {Message} message */
  hear({ kind, id, data }) {
    if (this.closed) return;
    if (id) this.lastId = id;
    this.onMessage(kind, JSON.parse(data));
  }

  /** @param {number} ms */
  sleep(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve(undefined);
      };
    });
  }
}
