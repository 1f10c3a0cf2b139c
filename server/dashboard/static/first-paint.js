// Runs before the first paint, so that a page that was set to dark never flashes light.
"use strict";
try {
  const theme = localStorage.getItem("hedgerow-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // storage is switched off: the system's theme it is
}
