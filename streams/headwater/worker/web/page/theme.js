/** Light, dark, or as the system has it. */

import { $ } from "./dom.js";

const STORED = "headwater-theme";
const NEXT = { auto: "light", light: "dark", dark: "auto" };
const SAID = { auto: ["Auto", "the colours are as the system has them"], light: ["Light", "the colours are light"], dark: ["Dark", "the colours are dark"] };

/** Wire the switch; `changed` is called whenever colours change, for canvases. */
export function start(changed) {
  let theme = localStorage.getItem(STORED) in SAID ? localStorage.getItem(STORED) : "auto";
  const button = $("theme");
  const show = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const [label, words] = SAID[theme];
    button.textContent = label;
    button.setAttribute("aria-label", `${label}: ${words}`);
    changed();
  };
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    localStorage.setItem(STORED, theme);
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}
