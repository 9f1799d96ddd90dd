"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (name, text, className) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const svg = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    return node;
  };
  const number = new Intl.NumberFormat("en").format;
  const n = data.ids.length;
  const traits = data.attributes.length;

  // --- rows -------------------------------------------------------------------------------------------------

  // Codes of attributes: 0 unknown, 1 and 2 asked to be absent, 3 and 4 to be present; 1 and 4 are right; 5 and 6
  // were asked to be absent and present, and nobody looked.
  const codes = new Uint8Array(n * traits);
  data.codes.forEach((row, i) => {
    for (let j = 0; j < traits; j++) codes[i * traits + j] = row.charCodeAt(j) - 48;
  });
  const wanted = (code) => code === 3 || code === 4 || code === 6;
  const unwanted = (code) => code === 1 || code === 2 || code === 5;
  const present = (code) => code === 2 || code === 4;
  const measured = (code) => code > 0 && code < 5;
  const wrong = (code) => code === 2 || code === 3;
  const word = (column, i) => (column && column.rows[i] >= 0 ? column.words[column.rows[i]] : "");
  const scores = data.scores.map((score) => {
    const values = Float64Array.from(score.values, (value) => (value === null ? NaN : value));
    const known = values.filter((value) => !Number.isNaN(value)).sort();
    const low = known[0], high = known[known.length - 1];
    return { ...score, values, known, low, high, from: 0, to: 100 };
  });
  const haystack = data.ids.map((id, i) => `${id} ${word(data.identities, i)} ${word(data.texts, i)}`.toLowerCase());

  // --- filters ----------------------------------------------------------------------------------------------

  const state = { search: "", selects: {}, picks: new Array(traits).fill(""), sort: "", reverse: false };
  let order = new Int32Array(0);
  const at = (score, share) => score.low + ((score.high - score.low) * share) / 100;

  function passes(i) {
    if (state.search && !haystack[i].includes(state.search)) return false;
    for (const name in state.selects) {
      const value = state.selects[name], row = data[name].rows[i];
      if (value === "none" ? row >= 0 : value === "any" ? row < 0 : value !== "" && row !== Number(value)) return false;
    }
    for (const score of scores) {
      if (score.from === 0 && score.to === 100) continue;
      const value = score.values[i];
      if (!(value >= at(score, score.from) - 1e-12 && value <= at(score, score.to) + 1e-12)) return false;
    }
    for (let j = 0; j < traits; j++) {
      const pick = state.picks[j];
      if (!pick) continue;
      const code = codes[i * traits + j];
      if (!(pick === "yes" ? wanted(code) : pick === "no" ? unwanted(code) : wrong(code))) return false;
    }
    return true;
  }

  function compare() {
    const [kind, which] = state.sort.split(":");
    const sign = state.reverse ? -1 : 1;
    if (kind === "score") {
      const values = scores[Number(which)].values;
      return (a, b) => {
        const x = values[a], y = values[b];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
        return sign * (x - y) || a - b;
      };
    }
    if (kind === "column") {
      // Numbers within words in their order: p2 comes before p10.
      const collator = new Intl.Collator("en", { numeric: true });
      const words = data[which].words;
      const ranks = new Int32Array(words.length);
      words.map((_, k) => k).sort((a, b) => collator.compare(words[a], words[b])).forEach((k, rank) => (ranks[k] = rank));
      const rank = (i) => (data[which].rows[i] < 0 ? Infinity : ranks[data[which].rows[i]]);
      return (a, b) => {
        const x = rank(a), y = rank(b);
        if (x === y) return a - b;
        return x === Infinity || y === Infinity ? x - y : sign * (x - y);
      };
    }
    return (a, b) => sign * (a - b);
  }

  function update(keep) {
    const rows = [];
    for (let i = 0; i < n; i++) if (passes(i)) rows.push(i);
    order = Int32Array.from(rows).sort(compare());
    const what = `${data.what === "generated" ? "generated " : ""}${n === 1 ? "face" : "faces"}`;
    $("shown").textContent = number(order.length);
    const all = n < data.total ? `${number(n)} ${what}, evenly spaced through ${number(data.total)}` : `${number(n)} ${what}`;
    $("of").textContent = order.length === n ? (n < data.total ? `of ${all}` : what) : `of ${all}`;
    $("count").textContent = order.length === n ? "" : `${number(order.length)} of ${number(n)}`;
    $("none").hidden = order.length > 0;
    $("done").textContent = order.length === 1 ? "Show 1 picture" : `Show ${number(order.length)} pictures`;
    $("direction").textContent = state.reverse ? "↓" : "↑";
    shareTraits();
    for (const score of scores) score.draw();
    if (!keep && scrollY > top()) scrollTo(0, top());
    layout();
  }

  let waiting = 0;
  function soon() {
    if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; update(); });
  }

  // --- what the filters are made of -------------------------------------------------------------------------

  const choosers = {};
  const NAMES = { identities: "Identity", splits: "Split", errors: "State" };
  function select(name) {
    const column = data[name];
    if (!column) return;
    const counts = new Array(column.words.length).fill(0);
    column.rows.forEach((row) => { if (row >= 0) counts[row]++; });
    const none = column.rows.reduce((sum, row) => sum + (row < 0), 0);
    const label = make("label", NAMES[name], "field"), box = make("select");
    const option = (value, text) => { const o = make("option", text); o.value = value; box.append(o); };
    option("", "all");
    if (name === "errors") {
      option("none", `made (${number(none)})`);
      option("any", `failed (${number(n - none)})`);
    }
    const collator = new Intl.Collator("en", { numeric: true });
    const add = (k) => option(String(k), `${column.words[k].slice(0, 60)} (${number(counts[k])})`);
    // No list is of use where it has thousands of words: it then has those that were chosen from a picture.
    const many = column.words.length > 2000;
    if (!many) column.words.map((_, k) => k).sort((a, b) => collator.compare(column.words[a], column.words[b])).forEach(add);
    box.id = `select-${name}`;
    box.onchange = () => { state.selects[name] = box.value; update(); };
    label.append(box);
    label.hidden = many && name !== "errors";
    $("selects").append(label);
    choosers[name] = (k) => {
      if (![...box.options].some((o) => o.value === String(k))) add(k);
      label.hidden = false;
      box.value = state.selects[name] = String(k);
      update();
    };
  }

  function scoreFilter(score) {
    const box = make("div", undefined, "score");
    const head = make("span", score.title), range = make("output");
    head.append(range);
    const bins = 36, counts = new Array(bins).fill(0);
    const bin = (value) => Math.min(bins - 1, Math.floor((bins * (value - score.low)) / (score.high - score.low || 1)));
    score.known.forEach((value) => counts[bin(value)]++);
    const most = Math.max(...counts);
    const chart = svg("svg", { viewBox: `0 0 ${bins * 10} 44`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const bars = counts.map((count, k) => {
      const height = count ? Math.max(1.5, (42 * count) / most) : 0;
      const bar = svg("rect", { x: k * 10 + 0.8, y: 44 - height, width: 8.4, height, class: "bar" });
      chart.append(bar);
      return bar;
    });
    const ends = make("div", undefined, "ends");
    const inputs = ["from", "to"].map((end) => {
      const input = make("input");
      input.type = "range"; input.min = 0; input.max = 100; input.step = 0.5; input.value = score[end];
      input.setAttribute("aria-label", `${score.title}, ${end === "from" ? "at least" : "at most"}`);
      input.oninput = () => {
        const other = Number(inputs[end === "from" ? 1 : 0].value);
        const value = end === "from" ? Math.min(Number(input.value), other) : Math.max(Number(input.value), other);
        input.value = score[end] = value;
        soon();
      };
      ends.append(input);
      return input;
    });
    score.draw = () => {
      const from = at(score, score.from), to = at(score, score.to);
      range.textContent = `${from.toFixed(score.digits)} to ${to.toFixed(score.digits)}`;
      inputs[0].value = score.from; inputs[1].value = score.to;
      // Of two thumbs at one place the one that can still move lies on top.
      inputs[0].style.zIndex = score.from > 50 ? 2 : 1;
      inputs[1].style.zIndex = score.from > 50 ? 1 : 2;
      bars.forEach((bar, k) => bar.classList.toggle("in", k >= bin(from) && k <= bin(to)));
    };
    box.append(head, chart, ends);
    $("scores").append(box);
  }

  const bars = [];
  function traitFilter(j, judged) {
    const row = make("div", undefined, "trait"), picks = make("span", undefined, "picks");
    row.append(make("span", data.attributes[j]));
    for (const value of judged ? ["yes", "no", "wrong"] : ["yes", "no"]) {
      const button = make("button", value);
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-label", `${data.attributes[j]}: ${value === "wrong" ? "not as asked for" : `asked for ${value}`}`);
      button.onclick = () => {
        state.picks[j] = state.picks[j] === value ? "" : value;
        press();
        update();
      };
      picks.append(button);
    }
    const chart = svg("svg", { "aria-hidden": "true" });
    const parts = ["track", "ceiling", "bar", "rule"].map((name) => {
      const part = name === "rule" ? svg("line", { class: "tick", y1: 2, y2: 7 }) : svg("rect", { class: name, height: name === "bar" ? 5 : 9, y: name === "bar" ? 2 : 0, rx: 2 });
      chart.append(part);
      return part;
    });
    parts[0].setAttribute("width", "100%");
    const text = make("small");
    row.append(picks, chart, text);
    bars.push({ parts, text });
    $("attributes").append(row);
  }

  function press() {
    document.querySelectorAll("#attributes .trait").forEach((row, j) => {
      for (const button of row.querySelectorAll("button")) {
        button.setAttribute("aria-pressed", String(button.textContent === state.picks[j]));
      }
    });
  }

  /** Wilson's interval of a share, 95 %. */
  function wilson(hits, total) {
    const z = 1.959964, p = hits / total, d = 1 + (z * z) / total;
    const middle = (p + (z * z) / (2 * total)) / d;
    const half = (z / d) * Math.sqrt((p * (1 - p)) / total + (z * z) / (4 * total * total));
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  }

  function shareTraits() {
    const counts = new Int32Array(traits * 7);
    for (const i of order) for (let j = 0; j < traits; j++) counts[j * 7 + codes[i * traits + j]]++;
    const percent = (share) => `${(100 * share).toFixed(0)}%`;
    for (let j = 0; j < traits; j++) {
      const c = counts.subarray(j * 7, j * 7 + 7), { parts, text } = bars[j];
      const asked = c[3] + c[4] + c[6], all = asked + c[1] + c[2] + c[5], judged = c[1] + c[2] + c[3] + c[4];
      const made = judged ? (c[2] + c[4]) / judged : 0;
      parts[1].setAttribute("width", all ? percent(asked / all) : "0%");
      parts[2].setAttribute("width", percent(made));
      const [low, high] = judged ? wilson(c[2] + c[4], judged) : [0, 0];
      parts[3].setAttribute("x1", `${100 * low}%`); parts[3].setAttribute("x2", `${100 * high}%`);
      parts[3].setAttribute("y1", 4.5); parts[3].setAttribute("y2", 4.5);
      text.textContent = !order.length ? "" : !all ? "not asked for" : `asked ${percent(asked / all)}` + (judged ? `, made ${percent(made)} (${percent(low)} to ${percent(high)})` : "");
    }
  }

  // --- files of pictures ------------------------------------------------------------------------------------

  const HELD = 160; // files of a kind in memory
  const files = new Map();
  window.raygenChunk = (kind, place, values) => { files.set(`${kind}${place}`, { values, used: performance.now() }); };

  /** The picture of a row; undefined while its file loads, null where there is none. */
  function picture(kind, i) {
    const size = kind === "v" ? data.largeChunk : data.chunk, place = Math.floor(i / size), key = `${kind}${place}`;
    const file = files.get(key);
    if (file && file.values) {
      file.used = performance.now();
      return file.values[i % size];
    }
    if (!file) load(kind, place, key);
    return file && file.missing ? null : undefined;
  }

  function load(kind, place, key) {
    files.set(key, {});
    const script = make("script");
    script.src = `${encodeURIComponent(data.folder)}/${kind}-${String(place).padStart(4, "0")}.js`;
    script.onload = () => { script.remove(); forget(kind); paintSoon(true); };
    script.onerror = () => {
      script.remove();
      files.set(key, { missing: true });
      if (kind === "t") {
        $("problem").hidden = false;
        $("problem").textContent = `${decodeURI(script.src.replace(/.*\/(?=[^/]*\/)/, ""))} does not open. Keep the folder ${data.folder}/ beside this page.`;
      }
      paintSoon(true);
    };
    document.head.append(script);
  }

  function forget(kind) {
    const own = [...files].filter(([key, file]) => key[0] === kind && file.values);
    own.sort((a, b) => a[1].used - b[1].used).slice(0, Math.max(0, own.length - HELD)).forEach(([key]) => files.delete(key));
  }

  // --- the grid: only the cells that are seen exist ---------------------------------------------------------

  const grid = $("grid"), NOTE = 24, GAP = 10;
  const view = { columns: 1, side: 100, line: 100 };
  let focus = 0;
  const cells = new Map();
  const spare = [];
  const top = () => grid.getBoundingClientRect().top + scrollY - $("veil").closest(".tools").offsetHeight - 10;

  function layout() {
    const width = grid.clientWidth, share = Number($("size").value) / 100;
    const target = 56 + Math.pow(share, 1.6) * (Math.min(width, 520) - 56);
    view.columns = Math.max(1, Math.round((width + GAP) / (target + GAP)));
    view.side = Math.floor((width - GAP * (view.columns - 1)) / view.columns);
    view.line = view.side + (view.side < 64 ? 0 : NOTE) + GAP;
    grid.style.height = `${Math.ceil(order.length / view.columns) * view.line}px`;
    for (const cell of cells.values()) retire(cell);
    cells.clear();
    focus = Math.max(0, Math.min(focus, order.length - 1));
    paint();
  }

  function retire(cell) {
    cell.node.style.visibility = "hidden";
    cell.node.tabIndex = -1;
    cell.row = -1;
    spare.push(cell);
  }

  function cellOf() {
    const cell = spare.pop();
    if (cell) return cell;
    const node = make("button", undefined, "cell"), frame = make("span", undefined, "frame");
    const image = make("img"), cover = make("img", undefined, "mask"), why = make("span", undefined, "why"), note = make("span", undefined, "note");
    node.type = "button";
    image.alt = cover.alt = "";
    image.decoding = cover.decoding = "async";
    frame.append(image, cover, why);
    node.append(frame, note);
    const made = { node, frame, image, cover, why, note, row: -1, place: -1, seen: "", covered: "" };
    node.onclick = () => { focus = made.place; open(made.place); };
    grid.append(node);
    return made;
  }

  function noteOf(i) {
    const [kind, which] = state.sort.split(":");
    if (kind === "score") {
      const score = scores[Number(which)], value = score.values[i];
      return Number.isNaN(value) ? "no score" : value.toFixed(score.digits);
    }
    return (kind === "column" && word(data[which], i)) || data.ids[i];
  }

  function show(image, value) {
    if (image.shown === value) return;
    image.shown = value;
    if (value) image.src = value;
    else image.removeAttribute("src");
    image.style.visibility = value ? "" : "hidden";
  }

  function fill(cell) {
    const i = cell.row, veil = Number($("veil").value);
    const value = picture("t", i);
    show(cell.image, value);
    cell.why.textContent = value === null ? word(data.errors, i) || "no picture" : "";
    show(cell.cover, veil && data.masks && value ? picture("m", i) : null);
    cell.cover.style.opacity = veil / 100;
  }

  function paint() {
    const above = grid.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor((-above - view.line) / view.line));
    const last = Math.ceil((innerHeight - above + view.line) / view.line);
    const from = first * view.columns, to = Math.min(order.length, last * view.columns);
    for (const [place, cell] of cells) {
      if (place < from || place >= to) { retire(cell); cells.delete(place); }
    }
    for (let place = from; place < to; place++) {
      let cell = cells.get(place);
      if (!cell) {
        cell = cellOf();
        cells.set(place, cell);
        cell.place = place;
        cell.row = order[place];
        const { style } = cell.node;
        style.visibility = "";
        style.width = `${view.side}px`;
        style.height = `${view.line - GAP}px`;
        style.transform = `translate(${(place % view.columns) * (view.side + GAP)}px,${Math.floor(place / view.columns) * view.line}px)`;
        cell.frame.style.height = `${view.side}px`;
        cell.note.textContent = view.side < 64 ? "" : noteOf(cell.row);
        cell.node.setAttribute("aria-label", `${data.ids[cell.row]}, ${noteOf(cell.row)}`);
      }
      fill(cell);
      cell.node.tabIndex = place === focus ? 0 : -1;
    }
    // Out of sight, the cell that the keyboard is at gives its place to the first one that is seen.
    if (order.length && !cells.has(focus)) {
      const bar = $("veil").closest(".tools").getBoundingClientRect().bottom;
      focus = Math.min(order.length - 1, Math.ceil(Math.max(0, bar - above) / view.line) * view.columns);
      const cell = cells.get(focus);
      if (cell) cell.node.tabIndex = 0;
    }
  }

  /** Cells are used again in any order, so the keyboard goes from place to place by arrows; the grid is one tab stop. */
  function go(place) {
    focus = Math.max(0, Math.min(order.length - 1, place));
    const above = grid.getBoundingClientRect().top + scrollY + Math.floor(focus / view.columns) * view.line;
    const bar = $("veil").closest(".tools").offsetHeight + 10;
    if (above < scrollY + bar) scrollTo(0, above - bar);
    else if (above + view.line > scrollY + innerHeight) scrollTo(0, above + view.line - innerHeight);
    paint();
    for (const [at, cell] of cells) cell.node.tabIndex = at === focus ? 0 : -1;
    cells.get(focus)?.node.focus({ preventScroll: true });
  }
  grid.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(innerHeight / view.line) - 1) * view.columns;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -view.columns, ArrowDown: view.columns, PageUp: -page, PageDown: page,
      Home: -order.length, End: order.length }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    if (event.key.startsWith("Arrow") && (focus + by < 0 || focus + by >= order.length)) return;
    go(focus + by);
  });

  let painting = 0;
  function paintSoon(viewer) {
    if (!painting) painting = requestAnimationFrame(() => { painting = 0; paint(); });
    if (viewer && $("viewer").open) drawViewer();
  }

  // --- one picture ------------------------------------------------------------------------------------------

  const shown = { place: 0, zoom: 1, x: 0, y: 0 };
  function open(place) {
    Object.assign(shown, { place, zoom: 1, x: 0, y: 0 });
    $("cover-opacity").value = $("veil").value;
    if (!$("viewer").open) $("viewer").showModal();
    drawFacts();
    drawViewer();
  }

  function step(by) {
    const place = shown.place + by;
    if (place >= 0 && place < order.length) open(place);
  }

  function drawViewer() {
    const i = order[shown.place], small = picture("t", i), large = data.large && small ? picture("v", i) : null;
    show($("picture"), large || small);
    const opacity = Number($("cover-opacity").value);
    show($("cover"), opacity && data.masks ? picture("m", i) : null);
    $("cover").style.opacity = opacity / 100;
    $("turn").style.transform = `translate(${shown.x}px,${shown.y}px) scale(${shown.zoom})`;
    $("picture").style.imageRendering = shown.zoom >= 3 ? "pixelated" : "";
    $("zoom").textContent = `${Math.round(10 * shown.zoom) / 10}×`;
    $("reason").hidden = small !== null;
    $("turn").hidden = small === null;
    $("reason").textContent = word(data.errors, i) || "no picture";
    $("before").disabled = shown.place === 0;
    $("after").disabled = shown.place >= order.length - 1;
  }

  function drawFacts() {
    const i = order[shown.place], facts = $("facts");
    $("viewer-name").textContent = data.ids[i];
    $("picture").alt = data.ids[i];
    facts.replaceChildren();
    const add = (name, value, whole) => {
      const line = make("div", undefined, whole ? "whole" : "");
      const text = make("dd", value);
      text.dir = "auto";
      line.append(make("dt", name), text);
      facts.append(line);
      return line;
    };
    const identity = word(data.identities, i);
    if (identity) {
      const button = make("button", identity, "text");
      button.type = "button";
      button.title = "Show all pictures of this identity";
      button.onclick = () => {
        shown.place = 0;
        $("viewer").close();
        choosers.identities(data.identities.rows[i]);
      };
      add("identity", "").lastChild.append(button);
    }
    if (word(data.splits, i)) add("split", word(data.splits, i));
    for (const score of scores) {
      if (!Number.isNaN(score.values[i])) add(score.title, score.values[i].toFixed(score.digits));
    }
    if (word(data.errors, i)) add("error", word(data.errors, i), true);
    if (word(data.texts, i)) add("text", word(data.texts, i), true);
    $("asked").replaceChildren();
    const own = codes.subarray(i * traits, i * traits + traits);
    const lists = [
      ["Asked for", (c) => wanted(c), ""],
      ["Not as asked for", wrong, "wrong"],
    ];
    for (const [title, test, className] of lists) {
      const names = data.attributes.filter((_, j) => test(own[j]));
      if (!names.length) continue;
      const list = make("ul", undefined, "words");
      names.forEach((name) => {
        const code = own[data.attributes.indexOf(name)];
        list.append(make("li", title === "Not as asked for" ? `${name}: ${wanted(code) ? "missing" : "there"}` : name, wrong(code) ? "wrong" : className));
      });
      $("asked").append(make("h3", title), list);
    }
  }

  function zoomTo(zoom, x, y) {
    zoom = Math.min(16, Math.max(1, zoom));
    const box = $("stage").getBoundingClientRect();
    const dx = x - box.left - box.width / 2, dy = y - box.top - box.height / 2, ratio = zoom / shown.zoom;
    shown.x = zoom === 1 ? 0 : dx - (dx - shown.x) * ratio;
    shown.y = zoom === 1 ? 0 : dy - (dy - shown.y) * ratio;
    shown.zoom = zoom;
    drawViewer();
  }
  const middle = () => { const b = $("stage").getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; };

  const fingers = new Map();
  const stage = $("stage");
  stage.onpointerdown = (event) => { stage.setPointerCapture(event.pointerId); fingers.set(event.pointerId, event); };
  stage.onpointermove = (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const others = [...fingers.values()].filter((finger) => finger.pointerId !== event.pointerId);
    if (others.length) {
      const far = (a, b) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1;
      zoomTo((shown.zoom * far(event, others[0])) / far(before, others[0]), (event.clientX + others[0].clientX) / 2, (event.clientY + others[0].clientY) / 2);
    } else if (shown.zoom > 1) {
      shown.x += event.clientX - before.clientX;
      shown.y += event.clientY - before.clientY;
      drawViewer();
    }
    fingers.set(event.pointerId, event);
  };
  stage.onpointerup = stage.onpointercancel = (event) => fingers.delete(event.pointerId);
  stage.ondblclick = (event) => zoomTo(shown.zoom > 1 ? 1 : 3, event.clientX, event.clientY);
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomTo(shown.zoom * Math.exp(-event.deltaY / 300), event.clientX, event.clientY);
  }, { passive: false });
  $("in").onclick = () => zoomTo(shown.zoom * 1.5, ...middle());
  $("out").onclick = () => zoomTo(shown.zoom / 1.5, ...middle());
  $("before").onclick = () => step(-1);
  $("after").onclick = () => step(1);
  $("close").onclick = () => $("viewer").close();
  $("viewer").onclose = () => { if (order.length) go(shown.place); };
  $("cover-opacity").oninput = drawViewer;
  $("viewer").onclick = (event) => { if (event.target === $("viewer")) $("viewer").close(); };
  document.addEventListener("keydown", (event) => {
    if (!$("viewer").open || event.target.type === "range") return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "+" || event.key === "=") zoomTo(shown.zoom * 1.5, ...middle());
    else if (event.key === "-") zoomTo(shown.zoom / 1.5, ...middle());
    else if (event.key === "m" && data.masks) { $("cover-opacity").value = Number($("cover-opacity").value) ? 0 : 60; drawViewer(); }
  });

  // --- start ------------------------------------------------------------------------------------------------

  const sort = $("sort");
  const option = (value, text) => { const o = make("option", text); o.value = value; sort.append(o); };
  option("order", "order of the rows");
  scores.forEach((score, k) => { if (score.known.length) option(`score:${k}`, score.title); });
  for (const name of ["identities", "errors", "splits"]) if (data[name]) option(`column:${name}`, NAMES[name].toLowerCase());
  state.sort = sort.value;
  sort.onchange = () => { state.sort = sort.value; update(); };
  $("direction").onclick = () => { state.reverse = !state.reverse; update(); };
  $("size").oninput = layout;
  $("veil").oninput = () => paintSoon(false);
  $("search").oninput = () => { state.search = $("search").value.trim().toLowerCase(); soon(); };
  $("open").onclick = () => document.body.classList.add("filtering");
  $("done").onclick = () => document.body.classList.remove("filtering");
  $("reset").onclick = $("all").onclick = () => {
    state.search = $("search").value = "";
    for (const name in state.selects) { state.selects[name] = ""; $(`select-${name}`).value = ""; }
    state.picks.fill("");
    for (const score of scores) { score.from = 0; score.to = 100; }
    press();
    update();
  };
  for (const [name, colour] of data.classes) {
    const line = make("li"), swatch = make("span", undefined, "swatch");
    swatch.style.background = colour;
    line.append(swatch, name);
    $("legend").append(line);
  }
  $("colours").hidden = $("veil-label").hidden = $("cover-label").hidden = !data.masks;
  for (const name of ["errors", "splits", "identities"]) select(name);
  if (scores.length) $("scores").append(make("h3", "Scores"));
  for (const score of scores) scoreFilter(score);
  if (traits) {
    const judged = codes.some(measured), head = make("h3", "Attributes");
    if (judged) {
      const key = make("small");
      key.append(make("span", undefined, "key asked"), "asked for", make("span", undefined, "key"), "made");
      head.append(key);
    } else head.append(make("small", "share asked for"));
    $("attributes").append(head);
    for (let j = 0; j < traits; j++) traitFilter(j, judged);
  }
  addEventListener("scroll", () => paintSoon(false), { passive: true });
  let seen = grid.clientWidth;
  new ResizeObserver(() => { if (grid.clientWidth !== seen) { seen = grid.clientWidth; layout(); } }).observe(grid);
  update(true);
})();
