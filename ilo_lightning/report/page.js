"use strict";
(() => {
  const PAGE = 50, CHOICES = 25, IMAGES = 200;
  const $ = (id) => document.getElementById(id);
  const read = (id) => JSON.parse($(id).textContent);
  const element = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };

  // ---- the table of results: filtered, sorted, one page of it in the document

  const { columns, rows: raw, units } = read("table");
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const numeric = (column) => ["number", "count", "mean"].includes(column.kind);
  const text = (column, value) => {
    if (value === null || value === undefined) return "–";
    if (column.kind !== "mean") return String(value);
    const [mean, half, mark = ""] = value;
    const interval = column.interval && half !== null ? ` ± ${half.toFixed(column.digits)}` : "";
    return mean.toFixed(column.digits) + mark + interval;
  };
  const rows = raw.map(([unit, method, ...values], place) => {
    const texts = values.map((value, i) => text(columns[i], value));
    return { unit, method, place, values, texts, words: texts.join(" ").toLowerCase() };
  });
  const state = { words: [], chosen: new Map(), column: null, descending: false, first: 0, shown: rows };

  const sortable = (row, i) => (columns[i].kind === "mean" ? row.values[i]?.[0] : row.values[i]);
  const compare = (i, sign) => (a, b) => {
    const x = sortable(a, i) ?? null, y = sortable(b, i) ?? null;
    if (x === null || y === null) return (x === null) - (y === null) || a.place - b.place; // what is missing comes last
    const order = numeric(columns[i]) ? x - y : collator.compare(x, y);
    return sign * order || a.place - b.place;
  };

  function choose() {
    state.shown = rows.filter((row) =>
      state.words.every((word) => row.words.includes(word)) &&
      [...state.chosen].every(([i, value]) => row.texts[i] === value));
    if (state.column !== null) state.shown.sort(compare(state.column, state.descending ? -1 : 1));
    state.first = 0;
    show();
  }

  const body = $("grid").tBodies[0];
  function show() {
    const { shown, first } = state, last = Math.min(first + PAGE, shown.length);
    body.replaceChildren(...shown.slice(first, last).map((row) => {
      const line = element("tr");
      columns.forEach((column, i) => {
        const cell = element(i ? "td" : "th", { className: numeric(column) ? "number" : "" });
        if (i === 0) {
          cell.scope = "row";
          cell.append(element("button", { type: "button", className: "link", textContent: row.texts[0] }));
        } else if (column.kind === "state") {
          cell.append(element("span", { className: `state ${row.texts[i]}`, textContent: row.texts[i] }));
        } else {
          const [mean, half] = row.texts[i].split(" ± ");
          cell.append(mean);
          if (half) cell.append(element("span", { className: "half", textContent: ` ± ${half}` }));
        }
        line.append(cell);
      });
      line.addEventListener("click", () => { if (!String(getSelection())) open(row); });
      return line;
    }));
    $("range").textContent = shown.length
      ? `${first + 1}–${last} of ${shown.length} rows${shown.length < rows.length ? ` (${rows.length} in all)` : ""}`
      : "no rows: change the filter";
    $("back").disabled = first === 0;
    $("forward").disabled = last >= shown.length;
  }

  function turn(by) {
    state.first = Math.max(0, state.first + by * PAGE);
    show();
    $("grid").scrollIntoView({ block: "nearest" });
  }

  const heads = element("tr");
  columns.forEach((column, i) => {
    const better = column.better ? (column.better === "higher" ? "\u00a0↑" : "\u00a0↓") : "";
    const arrow = element("span", { className: "arrow" });
    arrow.ariaHidden = "true";
    const button = element("button", { type: "button", title: column.title ?? "" }, column.label + better, arrow);
    const head = element("th", { scope: "col", className: numeric(column) ? "number" : "" }, button);
    button.addEventListener("click", () => {
      // The best first, the second time the other way round.
      const start = column.better === "higher";
      state.descending = state.column === i ? !state.descending : start;
      state.column = i;
      for (const other of heads.children) {
        other.removeAttribute("aria-sort");
        other.querySelector(".arrow").textContent = "";
      }
      head.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      arrow.textContent = state.descending ? "▾" : "▴";
      choose();
    });
    heads.append(head);
  });
  $("grid").tHead.append(heads);

  columns.forEach((column, i) => {
    if (i === 0 || column.kind === "mean" || column.kind === "count") return;
    const values = [...new Set(rows.map((row) => row.texts[i]))];
    if (values.length < 2 || values.length > CHOICES) return;
    values.sort(collator.compare);
    const select = element("select", {}, element("option", { value: "", textContent: "all" }),
      ...values.map((value, k) => element("option", { value: String(k + 1), textContent: value })));
    select.addEventListener("change", () => {
      if (select.value) state.chosen.set(i, values[select.value - 1]);
      else state.chosen.delete(i);
      choose();
    });
    $("filters").append(element("label", {}, column.label, select));
  });
  const reset = element("button", { type: "button", textContent: "Reset" });
  reset.addEventListener("click", () => {
    for (const field of $("filters").querySelectorAll("input, select")) field.value = "";
    state.words = [];
    state.chosen.clear();
    choose();
  });
  $("filters").append(reset);
  $("search").addEventListener("input", () => {
    state.words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    choose();
  });
  const back = element("button", { type: "button", id: "back", textContent: `← Previous ${PAGE}` });
  const forward = element("button", { type: "button", id: "forward", textContent: `Next ${PAGE} →` });
  back.addEventListener("click", () => turn(-1));
  forward.addEventListener("click", () => turn(1));
  const range = element("span", { id: "range" });
  range.setAttribute("role", "status");
  $("pager").append(back, range, forward);
  choose();

  // ---- one row: its pictures, its configuration, its images

  const dialog = $("details");
  const later = (make) => { let made; return () => (made ??= make()); };
  const common = later(() => read("common"));
  const pictures = later(() => read("pictures").map(([unit, image, measurement, truth, solved]) =>
    ({ unit, image, measurement, truth, solved })));
  // Rows whose pictures show the same measurement of the same truth can be compared.
  const sameMeasurement = later(() => {
    const groups = new Map();
    for (const entry of pictures()) {
      const key = `${entry.measurement} ${entry.truth}`;
      groups.set(key, [...(groups.get(key) ?? []), entry]);
    }
    return groups;
  });
  const settings = columns.map((column, i) => i).filter((i) => i && "title" in columns[i]);
  const describe = (unit, method) => {
    const row = rows.find((other) => other.unit === unit && other.method === method);
    const words = row ? settings.filter((i) => row.values[i] !== null).map((i) => `${columns[i].label} ${row.texts[i]}`) : [];
    return [method, ...words].join(", ");
  };
  let current = null; // {row or null, unit, method, data, images, panels}

  function open(row) { present({ row, unit: row.unit, method: row.method }); }

  function present(opened) {
    const data = read(`unit-${opened.unit}`);
    const images = pictures().filter((entry) => entry.unit === opened.unit);
    const kept = current?.image; // the next row shows the same image, if it has it
    current = { ...opened, data, images };
    $("details-title").textContent = units[opened.unit] + (opened.method ? ` · ${opened.method}` : "");
    const place = state.shown.indexOf(opened.row);
    $("previous").disabled = place <= 0;
    $("next").disabled = place < 0 || place >= state.shown.length - 1;
    $("comparison").hidden = images.length === 0;
    if (images.length) {
      $("image").replaceChildren(...images.map((entry, i) => element("option", { value: i, textContent: entry.image })));
      $("image").value = Math.max(0, images.findIndex((entry) => entry.image === kept));
      picture();
    }
    configuration();
    eachImage();
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  function picture() {
    const entry = current.images[$("image").value];
    current.image = entry.image;
    const score = (method) => {
      const k = current.data.methods.indexOf(method);
      const line = current.data.images.find(([name]) => name === entry.image);
      const m = current.data.values.findIndex((name) => name.startsWith("PSNR"));
      const value = k < 0 || m < 0 ? null : line?.[2 + k]?.[m];
      return value === null || value === undefined ? "" : `${value.toFixed(2)} dB`;
    };
    const own = [];
    if (entry.measurement) own.push({ label: "measurement", file: entry.measurement, note: "" });
    for (const [method, file] of Object.entries(entry.solved)) own.push({ label: method, file, note: score(method) });
    if (entry.truth) own.push({ label: "truth", file: entry.truth, note: "" });
    const others = (sameMeasurement().get(`${entry.measurement} ${entry.truth}`) ?? [])
      .filter((other) => other.unit !== entry.unit && entry.measurement)
      .flatMap((other) => Object.entries(other.solved).map(([method, file]) =>
        ({ label: describe(other.unit, method), file, note: "" })));
    const seen = new Set(own.map((panel) => panel.file));
    const further = others.filter((panel) => !seen.has(panel.file) && seen.add(panel.file));
    current.panels = [...own, ...further];
    const fill = (select, wanted) => {
      const option = (panel, i) => element("option", { value: i, textContent: panel.label });
      select.replaceChildren(...own.map(option));
      if (further.length) {
        const group = element("optgroup", { label: "other rows, same measurement" });
        group.append(...further.map((panel, i) => option(panel, own.length + i)));
        select.append(group);
      }
      const place = current.panels.findIndex((panel) => panel.label === wanted);
      select.value = Math.max(0, place);
    };
    fill($("left"), "measurement");
    fill($("right"), current.method in entry.solved ? current.method : own.at(-1).label);
    $("strip").replaceChildren(...own.map((panel, i) => {
      const button = element("button", { type: "button" }, image(panel), panel.label,
        ...(panel.note ? [element("br"), panel.note] : []));
      button.addEventListener("click", () => { $("right").value = i; compareTwo(); });
      return button;
    }));
    compareTwo();
  }

  function image(panel) {
    const made = element("img", { loading: "lazy", decoding: "async", alt: panel.label });
    load(made, panel.file);
    return made;
  }

  function load(img, file) {
    img.onload = () => img.classList.toggle("small", img.naturalWidth <= 256);
    img.src = file;
  }

  function compareTwo() {
    for (const side of ["left", "right"]) {
      const panel = current.panels[$(side).value];
      const img = $(`${side}-picture`);
      img.alt = `${side}: ${panel.label}`;
      load(img, panel.file);
      $(`${side}-tag`).textContent = panel.note ? `${panel.label} ${panel.note}` : panel.label;
    }
    [...$("strip").children].forEach((button, i) => { button.ariaPressed = String(i === Number($("right").value)); });
  }

  function configuration() {
    const wanted = $("find").value.toLowerCase();
    const own = current.data.config;
    const about = { state: current.data.state, ...(current.data.error ? { error: current.data.error } : {}) };
    current.data.folders.forEach((folder, i) => { about[i ? `folder ${i + 1}` : "folder"] = folder; });
    const lines = [about, own, common()].flatMap(Object.entries).filter(([key, value]) =>
      `${key} ${value}`.toLowerCase().includes(wanted));
    $("configuration").tBodies[0].replaceChildren(...lines.map(([key, value]) =>
      element("tr", { className: key in own ? "own" : "", title: key in own ? "differs between points" : "" },
        element("th", { scope: "row", textContent: key }), element("td", { textContent: value === null ? "null" : value }))));
  }

  function eachImage(all = false) {
    const { methods, values, images } = current.data;
    const table = $("per-image").querySelector("table");
    $("per-image").hidden = images.length === 0;
    const faults = images.some(([, problem]) => problem);
    const top = element("tr", {}, element("th", { scope: "col", textContent: "image" }));
    for (const method of methods) {
      for (const name of values) {
        top.append(element("th", { scope: "col", className: "number", textContent: methods.length > 1 ? `${method}: ${name}` : name }));
      }
    }
    if (faults) top.append(element("th", { scope: "col", textContent: "problem" }));
    table.tHead.replaceChildren(top);
    const shown = all ? images : images.slice(0, IMAGES);
    table.tBodies[0].replaceChildren(...shown.map(([name, problem, ...numbers]) => {
      const line = element("tr", {}, element("th", { scope: "row", textContent: name }));
      methods.forEach((_, k) => values.forEach((_, m) => {
        const value = numbers[k]?.[m] ?? null;
        line.append(element("td", { className: "number", textContent: value === null ? "–" : Number(value.toPrecision(4)) }));
      }));
      if (faults) line.append(element("td", { textContent: problem ?? "" }));
      return line;
    }));
    if (shown.length < images.length) {
      const more = element("button", { type: "button", textContent: `Show all ${images.length} images` });
      more.addEventListener("click", () => eachImage(true));
      table.tBodies[0].append(element("tr", {}, element("td", { colSpan: top.children.length }, more)));
    }
  }

  function step(by) {
    const place = state.shown.indexOf(current.row) + by;
    if (place < 0 || place >= state.shown.length) return;
    const first = Math.floor(place / PAGE) * PAGE;
    if (first !== state.first) { state.first = first; show(); }
    open(state.shown[place]);
  }

  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  $("image").addEventListener("change", picture);
  $("left").addEventListener("change", compareTwo);
  $("right").addEventListener("change", compareTwo);
  $("find").addEventListener("input", configuration);
  $("slider").addEventListener("input", () => $("viewer").style.setProperty("--split", `${$("slider").value}%`));
  for (const button of document.querySelectorAll("button[data-unit]")) {
    button.addEventListener("click", () => present({ row: null, unit: Number(button.dataset.unit), method: null }));
  }
  const metric = $("metric");
  if (metric) {
    metric.addEventListener("change", () => {
      for (const figure of document.querySelectorAll("figure[data-metric]")) {
        figure.hidden = figure.dataset.metric !== metric.value;
      }
    });
  }
})();
