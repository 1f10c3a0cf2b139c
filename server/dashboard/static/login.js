// The token, asked for once; the server keeps it in a cookie that scripts cannot read.

import { ApiError, signIn } from "./api.js";
import { h, replace } from "./dom.js";

/** @param {HTMLElement} main @param {() => void} done */
export function openLogin(main, done) {
  document.title = "Sign in · Hedgerow";
  const token = h("input", { id: "token", type: "password", autocomplete: "current-password", required: true, "aria-describedby": "token-hint login-error", spellcheck: "false" });
  const problem = h("p", { id: "login-error", class: "problem", role: "alert" });
  const button = h("button", { type: "submit", class: "primary" }, "Sign in");
  const submit = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    button.disabled = true;
    problem.textContent = "";
    try {
      await signIn(token.value.trim());
      done();
    } catch (error) {
      const status = error instanceof ApiError ? error.status : 0;
      problem.textContent = status === 401 ? "That token is not one this dashboard knows." : error instanceof Error ? sentence(error.message) : String(error);
      token.setAttribute("aria-invalid", "true");
      button.disabled = false;
      token.select();
      token.focus();
    }
  };
  replace(
    main,
    h(
      "form",
      { class: "login card", onsubmit: submit },
      h("h1", {}, "Sign in"),
      h("p", { id: "token-hint" }, "This dashboard asks for an access token. Whoever started it knows where the tokens are kept."),
      h("label", { for: "token" }, "Access token"),
      token,
      problem,
      button,
    ),
  );
  token.focus();
  return { close() {} };
}

/** @param {string} text */
const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
