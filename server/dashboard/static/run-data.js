// One run as far as it is known here, kept up to date by the stream.

import { get, runPath } from "./api.js";
import { Stream } from "./stream.js";

/**
 * @typedef {"run" | "round" | "event" | "link"} Change what a listener hears of
 * @typedef {import("./stream.js").Link} Link
 */

const MOST_EVENTS = 400;

export class RunData {
  /** @param {string} id */
  constructor(id) {
    this.id = id;
    /** @type {any} */
    this.run = null;
    /** @type {Map<number, any>} */
    this.byRound = new Map();
    /** Since the page was opened, newest first. @type {any[]} */
    this.events = [];
    /** @type {Link | null} */
    this.link = null;
    this.heardAt = Date.now();
    /** @type {Set<(change: Change, data: any) => void>} */
    this.listeners = new Set();
    this.abort = new AbortController();
    /** @type {Stream | null} */
    this.stream = null;
  }

  /** Read all there is, then follow. Rejects with an ApiError. */
  async open() {
    await this.catchUp();
    if (this.abort.signal.aborted) return;
    this.stream = new Stream(this.id, (kind, data) => this.hear(kind, data), (link) => this.linked(link));
  }

  close() {
    this.abort.abort();
    this.stream?.close();
    this.listeners.clear();
  }

  /** @param {(change: Change, data: any) => void} listener @returns {() => void} to stop listening */
  on(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Closed rounds, ascending. */
  get rounds() {
    return [...this.byRound.values()].sort((a, b) => a.round - b.round);
  }

  async catchUp() {
    const last = Math.max(0, ...this.byRound.keys());
    const signal = this.abort.signal;
    const [run, { rounds }] = await Promise.all([get(runPath(this.id), signal), get(`${runPath(this.id)}/rounds?after=${last}`, signal)]);
    this.run = run;
    for (const row of rounds) this.byRound.set(row.round, row);
    this.heardAt = Date.now();
  }

  /** @param {string} kind @param {any} data */
  hear(kind, data) {
    this.heardAt = Date.now();
    if (kind === "summary") {
      const before = this.run;
      this.run = { ...before, ...data };
      this.tell("run", this.run);
      // A summary leaves out what seldom changes: settings, warnings, the closing figures.
      if (before.state !== data.state || before.started_s !== data.started_s || before.parameters !== data.parameters) void this.readAgain();
    } else if (kind === "reset") {
      void this.readAgain();
    } else if (kind === "round") {
      this.byRound.set(data.round, data);
      this.tell("round", data);
    } else if (kind === "event") {
      this.events.unshift(data);
      this.events.length = Math.min(this.events.length, MOST_EVENTS);
      this.tell("event", data);
      if (data.kind === "run_resumed") {
        this.byRound.clear(); // rounds of an attempt that was lost may be among them
        void this.readAgain();
      }
    }
  }

  /** @param {Link} link */
  linked(link) {
    const lost = this.link?.state === "waiting";
    this.link = link;
    this.tell("link", link);
    if (link.state !== "live" || !lost) return;
    // The stream goes on where it ended; this also covers another folder that stands there now.
    void this.readAgain();
  }

  readAgain() {
    return this.catchUp().then(
      () => {
        this.tell("run", this.run);
        this.tell("round", null);
      },
      () => undefined, // the stream fails as well, and says so
    );
  }

  /** @param {Change} change @param {any} data */
  tell(change, data) {
    if (this.abort.signal.aborted) return;
    for (const listener of [...this.listeners]) listener(change, data);
  }
}
