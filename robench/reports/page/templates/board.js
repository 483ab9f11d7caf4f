"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // A browser may refuse storage to pages from disk; the choice then lasts for one page.
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("robench-theme", value);
      return localStorage.getItem("robench-theme");
    } catch {
      return null;
    }
  };
  const chosen = remembered();
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;

  const isDark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  const say = (text) => {
    document.getElementById("said").textContent = text;
  };

  const theme = () => {
    const button = document.getElementById("theme");
    const show = () => button.setAttribute("aria-pressed", String(isDark()));
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remembered(root.dataset.theme);
      show();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
    show();
  };

  // navigator.clipboard is missing on hosts without TLS.
  const copy = async (text, source) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      getSelection().selectAllChildren(source);
      return document.execCommand("copy");
    }
  };
  const commands = () => {
    for (const button of document.querySelectorAll(".copy")) {
      const code = button.parentElement.querySelector("code");
      button.setAttribute("aria-label", `Copy: ${code.textContent}`);
      button.addEventListener("click", async () => {
        const done = await copy(code.textContent, code);
        button.textContent = done ? "Copied" : "Select it";
        say(done ? "Command copied" : "The browser refused: select the command and copy it");
        setTimeout(() => (button.textContent = "Copy"), 2000);
      });
    }
  };

  const sortable = (head) => {
    const label = head.textContent.trim();
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort")
        ? head.getAttribute("aria-sort") === "descending"
        : head.dataset.kind !== "number";
      for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const body = head.closest("table").tBodies[0];
      const valued = [...body.rows].map((row) => {
        const cell = row.cells[head.cellIndex];
        const said = cell.dataset.value;
        const value = said === undefined ? cell.textContent.trim() : said === "" ? null : Number(said);
        return { row, value };
      });
      valued.sort((a, b) => {
        // What is not known stands last, whichever way the rest is turned.
        if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
        const order = typeof a.value === "string" ? a.value.localeCompare(b.value, "en") : a.value - b.value;
        return rising ? order : -order;
      });
      body.append(...valued.map(({ row }) => row));
      say(`Sorted by ${label}, ${rising ? "ascending" : "descending"}`);
    });
  };

  const filters = () => {
    const form = document.getElementById("filters");
    if (!form) return;
    const names = ["protocol", "threat", "knowledge", "family", "architecture"];
    const regions = [...document.querySelectorAll(".part .board")];
    const rows = regions.flatMap((region) => {
      const part = region.closest(".part");
      const shared = { ...part.dataset, ...region.dataset };
      const context = [part.querySelector("h2"), region.querySelector("h3")].map((e) => e.textContent);
      return [...region.querySelectorAll("tbody tr")].map((row) => ({
        row,
        facts: { ...shared, ...row.dataset },
        text: [...context, row.textContent].join(" ").toLowerCase(),
      }));
    });

    const apply = () => {
      const asked = new FormData(form);
      const words = asked.get("q").toLowerCase().split(/\s+/).filter(Boolean);
      const wanted = names.filter((name) => asked.get(name));
      let shown = 0;
      for (const { row, facts, text } of rows) {
        row.hidden =
          !wanted.every((name) => facts[name] === asked.get(name)) || !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      const without = (element) => !element.querySelector("tbody tr:not([hidden])");
      for (const region of regions) region.hidden = without(region);
      for (const part of document.querySelectorAll(".part")) part.hidden = without(part);
      document.getElementById("nothing").hidden = shown > 0;
      document.getElementById("found").textContent = `${shown} of ${rows.length} rows`;
    };
    // The address keeps the choice, so that it can be passed on.
    const keep = () => {
      const set = [...new FormData(form)].filter(([, value]) => value);
      history.replaceState(null, "", set.length ? `#${new URLSearchParams(set)}` : "#");
    };
    const recall = () => {
      for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
        if (name === "q" || names.includes(name)) form.elements[name].value = value;
      }
      apply();
    };
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => {
      apply();
      keep();
    });
    // The fields are empty only after the event.
    form.addEventListener("reset", () =>
      setTimeout(() => {
        apply();
        keep();
        form.elements.q.focus();
      }),
    );
    document.getElementById("clear").addEventListener("click", () => form.reset());
    recall();
  };

  document.addEventListener("DOMContentLoaded", () => {
    theme();
    commands();
    for (const head of document.querySelectorAll("th[data-kind]")) sortable(head);
    filters();
  });
})();
