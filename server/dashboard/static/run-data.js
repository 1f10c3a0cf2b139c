// One run as far as it is known here, kept up to date by the stream.

import { get, runPath } from "./api.js";
import { Stream } from "./stream.js";

/**
 * @typedef {"run" | "round" | "event" | "reset" | "link"} Change what a listener hears of
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
    /** All rounds up to this one were asked for; later ones came as they closed, so there may be gaps between them. */
    this.complete = 0;
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
    const signal = this.abort.signal;
    const [run, { rounds }] = await Promise.all([get(runPath(this.id), signal), get(`${runPath(this.id)}/rounds?after=${this.complete}`, signal)]);
    this.run = run;
    for (const row of rounds) this.byRound.set(row.round, row);
    this.complete = rounds[rounds.length - 1]?.round ?? this.complete;
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
      this.tell("reset", null);
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
        this.complete = 0;
        void this.readAgain();
      }
    }
  }

  /** @param {Link} link */
  linked(link) {
    this.link = link;
    this.tell("link", link);
    // What happened before the stream was open is not in it.
    if (link.state === "live") void this.readAgain();
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
