// Figures as text. Unknown is an en dash.

export const UNKNOWN = "–";

/** @typedef {number | null | undefined} Maybe */

/** @param {Maybe} value @returns {value is number} */
export const known = (value) => typeof value === "number" && Number.isFinite(value);

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** @param {Maybe} value */
export const count = (value) => (known(value) ? grouped.format(value) : UNKNOWN);

/** @param {Maybe} value of 1 */
export const percent = (value) => (known(value) ? `${(100 * value).toFixed(1)} %` : UNKNOWN);

/** @param {Maybe} value */
export const figure = (value) => {
  if (!known(value)) return UNKNOWN;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return size >= 1000 ? grouped.format(value) : String(Number(value.toPrecision(4)));
};

/** Bytes on the wire and in files: decimal. @param {Maybe} value */
export const bytes = (value) => scaled(value, 1000, ["B", "kB", "MB", "GB", "TB", "PB"]);

/** Bytes of memory: binary. @param {Maybe} value */
export const memory = (value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);

/** @param {Maybe} seconds */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds === 0) return "0 s";
  if (seconds < 0.001) return `${(1e6 * seconds).toFixed(0)} µs`;
  if (seconds < 0.0995) return `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 59.5) return `${seconds < 9.95 ? seconds.toFixed(1) : seconds.toFixed(0)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  const hours = Math.round(seconds / 3600);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** How long ago; of a clock that is ahead of ours, now. @param {Maybe} unixSeconds @param {number} [nowSeconds] */
export function ago(unixSeconds, nowSeconds = Date.now() / 1000) {
  if (!known(unixSeconds)) return UNKNOWN;
  const seconds = Math.max(0, nowSeconds - unixSeconds);
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

/** @param {Maybe} unixSeconds */
export const moment = (unixSeconds) =>
  known(unixSeconds) ? new Date(1000 * unixSeconds).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }) : UNKNOWN;

/** @param {Maybe} unixSeconds */
export const clock = (unixSeconds) =>
  known(unixSeconds) ? new Date(1000 * unixSeconds).toLocaleTimeString("en-GB") : UNKNOWN;

/** A hash as people compare it. @param {string | null | undefined} hash */
export const short = (hash) => (hash ? hash.slice(0, 12) : UNKNOWN);

/** A figure on an axis, which needs no decimals that are all nought: 80.0 % is 80 %. @param {string} text */
export const trimmed = (text) => text.replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");

/** @param {number} n @param {string} one @param {string} [many] */
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** A config value, or any other JSON, on one line. @param {unknown} value @returns {string} */
export function plain(value) {
  if (value === null || value === undefined || value === "") return UNKNOWN;
  if (typeof value === "number") return figure(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** @param {Maybe} value @param {number} base @param {string[]} units */
function scaled(value, base, units) {
  if (!known(value)) return UNKNOWN;
  let size = value;
  let unit = 0;
  while (Math.abs(size) >= base && unit < units.length - 1) {
    size /= base;
    unit += 1;
  }
  return `${unit === 0 ? grouped.format(size) : size.toFixed(size < 10 ? 2 : size < 100 ? 1 : 0)} ${units[unit]}`;
}
