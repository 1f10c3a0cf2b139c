// Light, dark, or as the system has it. Remembered in this browser.

const KEY = "hedgerow-theme";
const ORDER = ["auto", "light", "dark"];
const MARKS = { auto: "◐", light: "☀", dark: "☾" };

/** Whoever draws colours itself (the plots) listens to this event of `document`. */
export const THEME_CHANGED = "hedgerow:theme";

/** @param {HTMLButtonElement} button */
export function startTheme(button) {
  const show = () => {
    const now = current();
    const next = ORDER[(ORDER.indexOf(now) + 1) % ORDER.length];
    button.textContent = MARKS[now];
    button.setAttribute("aria-label", `Theme: ${now}. Switch to ${next}`);
    button.title = `Theme: ${now}`;
  };
  button.addEventListener("click", () => {
    remember(ORDER[(ORDER.indexOf(current()) + 1) % ORDER.length]);
    show();
    document.dispatchEvent(new Event(THEME_CHANGED));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    document.dispatchEvent(new Event(THEME_CHANGED));
  });
  show();
}

/** @returns {"auto" | "light" | "dark"} */
function current() {
  const theme = document.documentElement.dataset.theme;
  return theme === "light" || theme === "dark" ? theme : "auto";
}

/** @param {string} theme */
function remember(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // storage is switched off: it lasts as long as the page
  }
}
