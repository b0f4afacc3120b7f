// What only a browser can know: how wide things turn out, what scripts of the theme call them, and paper.
(() => {
  "use strict";

  // What scrolls sideways is a stop of the Tab key, with a name, and only while it scrolls.
  const WIDE = {
    ".wide": "Figure",
    "mjx-container[display]": "Formula",
    ".bd-article pre": "Code",
    ".pst-scrollable-table-container": "Table",
    ".cell_output > .output": "Output",
  };
  const letTheKeyboardIn = () => {
    for (const [selector, name] of Object.entries(WIDE)) {
      for (const [index, node] of document.querySelectorAll(selector).entries()) {
        const scrolls = node.scrollWidth > node.clientWidth && getComputedStyle(node).overflowX !== "visible";
        if (scrolls) {
          node.tabIndex = 0;
          node.setAttribute("role", "region");
          node.setAttribute("aria-label", `${name} ${index + 1} of this page, wider than the window`);
        } else if (node.hasAttribute("tabindex")) {
          for (const attribute of ["tabindex", "role", "aria-label"]) node.removeAttribute(attribute);
        }
      }
    }
  };

  // "Toggle hidden content" is what all of them were called: now each has its title's name, and a
  // solution its exercise's.
  const nameToggles = () => {
    const exercises = [...document.querySelectorAll(".exercise > .admonition-title")];
    for (const button of document.querySelectorAll(".toggle-button")) {
      const above = (title) => title.compareDocumentPosition(button) & Node.DOCUMENT_POSITION_FOLLOWING;
      const exercise = button.closest(".solution") && exercises.findLast(above);
      const names = [button.parentElement, exercise].filter(Boolean).map((node) => node.textContent.trim());
      button.setAttribute("aria-label", names.join(" to "));
    }
  };

  // The theme scrolls the whole sidebar to the chapter one reads; here only the chapters scroll.
  const showChapter = () => {
    const chapter = document.querySelector(".bd-docs-nav li.current");
    const box = chapter?.closest(".sidebar-primary-item");
    if (box) box.scrollTop = chapter.offsetTop - box.offsetTop - box.clientHeight / 3;
  };

  const settle = async () => {
    showChapter();
    nameToggles();
    await window.MathJax?.startup?.promise;
    letTheKeyboardIn();
  };
  window.addEventListener("load", settle);
  let waiting;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(letTheKeyboardIn, 400); // after the theme has done the same, without names
  });

  // Paper is white: a page that is dark on the screen turns light while it is printed.
  const { dataset } = document.documentElement;
  let onScreen = null;
  const toPaper = () => {
    onScreen ??= dataset.theme;
    dataset.theme = "light";
  };
  const toScreen = () => {
    if (onScreen !== null) dataset.theme = onScreen;
    onScreen = null;
  };
  window.addEventListener("beforeprint", toPaper);
  window.addEventListener("afterprint", toScreen);
  window.matchMedia("print").addEventListener("change", ({ matches }) => (matches ? toPaper() : toScreen()));
})();
