"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Browsers may refuse storage to pages from disk. The choice is then lost on the next page.
  const storedTheme = (value) => {
    try {
      if (value) localStorage.setItem("robench-theme", value);
      return localStorage.getItem("robench-theme");
    } catch {
      return null;
    }
  };
  const chosen = storedTheme();
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;

  const isDark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  const announce = (text) => {
    document.getElementById("status").textContent = text;
  };

  const theme = () => {
    const button = document.getElementById("theme");
    const show = () => (button.textContent = `Switch to ${isDark() ? "light" : "dark"} theme`);
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      storedTheme(root.dataset.theme);
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
        announce(done ? "Command copied" : "The browser refused to copy: select the command and copy it");
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
      const ascending = head.getAttribute("aria-sort")
        ? head.getAttribute("aria-sort") === "descending"
        : head.dataset.kind !== "number";
      for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const body = head.closest("table").tBodies[0];
      const valued = [...body.rows].map((row) => {
        const cell = row.cells[head.cellIndex];
        const number = cell.dataset.value;
        const value = number === undefined ? cell.textContent.trim() : number === "" ? null : Number(number);
        return { row, value };
      });
      valued.sort((a, b) => {
        // Unknown values come last in both directions.
        if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
        const order = typeof a.value === "string" ? a.value.localeCompare(b.value, "en") : a.value - b.value;
        return ascending ? order : -order;
      });
      body.append(...valued.map(({ row }) => row));
      paginate(body, 0);
      announce(`Sorted by ${label}, ${ascending ? "ascending" : "descending"}`);
    });
  };

  // A table shows a hundred rows at a time, not counting those that the filters hide.
  const PAGE = 100;
  const starts = new WeakMap();
  const paginate = (body, start = starts.get(body) ?? 0) => {
    const rows = [...body.rows].filter((row) => !row.hidden);
    const first = Math.min(start, Math.max(0, Math.floor((rows.length - 1) / PAGE) * PAGE));
    starts.set(body, first);
    rows.forEach((row, i) => row.classList.toggle("later", i < first || i >= first + PAGE));
    const scroll = body.closest(".scroll");
    let bar = scroll.nextElementSibling;
    if (!bar?.classList.contains("pages")) {
      if (rows.length <= PAGE) return;
      bar = document.createElement("div");
      bar.className = "pages";
      const step = (text, direction) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = text;
        button.addEventListener("click", () => {
          paginate(body, starts.get(body) + direction * PAGE);
          scroll.scrollTop = 0;
          announce(bar.querySelector("span").textContent);
        });
        return button;
      };
      bar.append(step("Previous", -1), document.createElement("span"), step("Next", 1));
      scroll.after(bar);
    }
    const [previous, text, next] = bar.children;
    bar.hidden = rows.length <= PAGE;
    text.textContent = `Rows ${first + 1} to ${Math.min(first + PAGE, rows.length)} of ${rows.length}`;
    previous.disabled = first === 0;
    next.disabled = first + PAGE >= rows.length;
  };

  const leaderboards = () => {
    const form = document.getElementById("filters");
    if (!form) return;
    const names = ["knowledge", "family", "architecture"];
    const tabs = [...document.querySelectorAll(".tab")];
    const links = new Map(tabs.map((tab) => [tab, document.querySelector(`[data-tab="${CSS.escape(tab.id)}"]`)]));
    const rows = tabs.flatMap((tab) =>
      [...tab.querySelectorAll(".board")].flatMap((region) => {
        const context = [tab.querySelector("h2"), region.querySelector("h3")].map((e) => e.textContent).join(" ");
        // The tables in the notes of a leaderboard have no rows of their own.
        return [...region.querySelectorAll("tr[data-spec]")].map((row) => ({ row, tab, region, context, text: null }));
      }),
    );
    const current = () => tabs.find((tab) => tab.classList.contains("current"));
    const fields = () => new FormData(form);

    const apply = () => {
      const filters = fields();
      const words = filters.get("q").toLowerCase().split(/\s+/).filter(Boolean);
      const active = names.filter((name) => filters.get(name));
      const counts = new Map(tabs.map((tab) => [tab, { shown: 0, all: 0, more: 0 }]));
      for (const item of rows) {
        const { row, tab, region } = item;
        const facts = { ...region.dataset, ...row.dataset };
        if (words.length && item.text === null)
          item.text = `${item.context} ${row.dataset.spec} ${row.textContent}`.toLowerCase();
        row.hidden =
          !active.every((name) => facts[name] === filters.get(name)) || !words.every((word) => item.text.includes(word));
        const count = counts.get(tab);
        count.shown += !row.hidden;
        count.all += 1;
        count.more += !row.hidden && region.closest(".more") !== null;
      }
      const filtering = words.length > 0 || active.length > 0;
      for (const tab of tabs) {
        for (const region of tab.querySelectorAll(".board"))
          region.hidden = filtering && !region.querySelector("tr[data-spec]:not([hidden])");
        for (const body of tab.querySelectorAll("tbody")) paginate(body);
        const more = tab.querySelector(".more");
        if (more) {
          more.hidden = filtering && !more.querySelector("tr[data-spec]:not([hidden])");
          if (filtering && !more.hidden) more.open = true;
        }
        links.get(tab).classList.toggle("none", counts.get(tab).shown === 0);
      }
      const inTab = counts.get(current());
      const elsewhere = [...counts].reduce((sum, [tab, count]) => sum + (tab === current() ? 0 : count.shown), 0);
      const others = filtering && tabs.length > 1 ? `, ${elsewhere} in other tabs` : "";
      document.getElementById("nothing").hidden = inTab.shown > 0;
      document.getElementById("elsewhere").textContent = elsewhere ? `${elsewhere} rows of other tabs do.` : "";
      const folded = inTab.more ? `, ${inTab.more} under More attacks` : "";
      document.getElementById("count").textContent = `${inTab.shown} of ${inTab.all} rows${folded}${others}`;
    };
    const choose = (tab) => {
      for (const other of tabs) {
        other.classList.toggle("current", other === tab);
        if (other === tab) links.get(other).setAttribute("aria-current", "true");
        else links.get(other).removeAttribute("aria-current");
      }
      apply();
    };
    // The address holds the choice, so it can be shared.
    const keep = () => {
      const set = [...fields()].filter(([, value]) => value);
      if (current() !== tabs[0]) set.unshift(["tab", current().id]);
      history.replaceState(null, "", set.length ? `#${new URLSearchParams(set)}` : "#");
    };
    const recall = () => {
      const hash = decodeURIComponent(location.hash.slice(1));
      if (current() && document.getElementById(hash)?.closest(".tab") === null) return;
      const plain = tabs.find((tab) => tab.id === hash);
      let tab = plain ?? tabs[0];
      for (const [name, value] of new URLSearchParams(plain ? "" : location.hash.slice(1))) {
        if (name === "q" || names.includes(name)) form.elements[name].value = value;
        if (name === "tab") tab = tabs.find((other) => other.id === value) ?? tab;
      }
      choose(tab);
    };
    for (const [tab, link] of links)
      link.addEventListener("click", (event) => {
        event.preventDefault();
        choose(tab);
        keep();
      });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      if (event.target.closest("#columns")) return;
      apply();
      keep();
    });
    // The fields are cleared after the event.
    form.addEventListener("reset", () =>
      setTimeout(() => {
        apply();
        keep();
        form.elements.q.focus();
      }),
    );
    document.getElementById("clear").addEventListener("click", () => form.reset());
    addEventListener("hashchange", recall);
    recall();
  };

  // The width of the screen determines the visible columns until the user chooses some.
  const columns = () => {
    const boxes = [...document.querySelectorAll("#columns input")];
    const shown = (name) => {
      const head = document.querySelector(`.tab.current thead .c-${name}`);
      return head !== null && getComputedStyle(head).display !== "none";
    };
    const show = () => {
      if (root.classList.contains("auto")) for (const box of boxes) box.checked = shown(box.value);
    };
    for (const box of boxes)
      box.addEventListener("change", () => {
        root.classList.remove("auto");
        root.dataset.off = boxes.filter((other) => !other.checked).map((other) => other.value).join(" ");
      });
    addEventListener("resize", show);
    show();
  };

  document.addEventListener("DOMContentLoaded", () => {
    theme();
    commands();
    for (const head of document.querySelectorAll("th[data-kind]")) sortable(head);
    leaderboards();
    columns();
  });
})();
