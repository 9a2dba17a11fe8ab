// A table of clips: filters, histograms that filter, groups, and one clip at a time. Charts by uPlot.
"use strict";
(async () => {
  const data = JSON.parse($("data").textContent);
  const size = data.num_clips;
  const table = new Float32Array(await unpack(data.table));
  const broken = new Uint8Array(await unpack(data.broken));
  const text = JSON.parse(new TextDecoder().decode(await unpack(data.text)));
  const ids = text.clip_ids;
  const column = (n) => table.subarray(n * size, (n + 1) * size);
  const [states, starts] = [column(0), column(1)];
  const groups = data.groups.map((group, n) => ({ ...group, names: text.names[n], values: column(2 + n) }));
  const measures = data.measures.map((measure, n) => ({ ...measure, values: column(2 + groups.length + n) }));
  const group = (field) => groups.find((one) => one.field === field);
  const measure = (field) => measures.find((one) => one.field === field);
  const lengths = measure("duration_s")?.values ?? new Float32Array(size);
  const PAGE = 50, GROUPS = 20;

  // ------------------------------------------------------------------------------ filters

  // Each filter has a mask of the clips that it takes away, and `fails` counts the filters for each clip: one
  // filter moves without looking at the others, and a histogram leaves out its own.
  const fails = new Uint16Array(size);
  const filters = new Map();

  function filter(name, passes) {
    const masked = filters.get(name) ?? new Uint8Array(size);
    filters.set(name, masked);
    for (let n = 0; n < size; n++) {
      const fault = passes && !passes(n) ? 1 : 0;
      fails[n] += fault - masked[n];
      masked[n] = fault;
    }
  }

  function ask(name, label, input, passes) {
    const box = make("label", {}, label);
    box.append(input);
    $("asks").append(box);
    input.dataset.filter = name;
    input.addEventListener("input", () => {
      input.classList.toggle("used", input.value !== "");
      filter(name, input.value === "" ? null : passes(input.value));
      show();
    });
  }

  function choice(entries, all = "all") {
    const select = make("select");
    for (const [value, label] of [["", all], ...entries]) select.append(make("option", { value }, label));
    return select;
  }

  ask("state", "State", choice(data.states.map((state, n) => [n, state])), (value) => (n) => states[n] === Number(value));
  ask("reason", "Reason", choice(data.reasons.map((reason, n) => [n, reason.code]), "any"), (value) => {
    const hit = broken.subarray(value * size, (value + 1) * size);
    return (n) => hit[n] === 1;
  });
  ask("begins", "Id begins with", make("input", { type: "search", spellcheck: "false" }), (value) => (n) => ids[n].startsWith(value));
  for (const one of groups) {
    if (one.names.length > 200) {
      ask(one.field, `${one.label} contains`, make("input", { type: "search", spellcheck: "false" }), (value) => {
        const hit = one.names.map((name) => name.toLowerCase().includes(value.toLowerCase()));
        return (n) => !Number.isNaN(one.values[n]) && hit[one.values[n]];
      });
    } else {
      ask(one.field, one.label, choice([...one.names.entries(), [-1, "(none)"]]), (value) =>
        Number(value) < 0 ? (n) => Number.isNaN(one.values[n]) : (n) => one.values[n] === Number(value));
    }
  }

  // ------------------------------------------------------------------------------ charts

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (value) => String(Number(value.toPrecision(3)));
  const axis = (more) => ({ stroke: () => colour("--muted"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false }, font: "10px system-ui", ...more });
  const charts = new Set();

  // A chart in `box` that keeps its width.
  function plot(box, options, values) {
    const chart = new uPlot({ width: Math.max(box.clientWidth, 120), legend: { show: false }, ...options }, values, box);
    const follow = new ResizeObserver(() => {
      if (box.clientWidth && box.clientWidth !== chart.width) chart.setSize({ width: box.clientWidth, height: options.height });
    });
    follow.observe(box);
    const shown = { chart, remove: () => { follow.disconnect(); chart.destroy(); charts.delete(shown); } };
    charts.add(shown);
    return shown;
  }

  const drawn = [];

  function bin(one) {
    // The bin of each clip, 255 without a value; values beyond the edges are in the outermost bins.
    const { edges, values } = one;
    const bins = edges.length - 1;
    one.bins = new Uint8Array(size);
    for (let n = 0; n < size; n++) {
      const value = values[n];
      if (Number.isNaN(value)) { one.bins[n] = 255; continue; }
      let low = 0, high = bins;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (value < edges[middle]) high = middle; else low = middle;
      }
      one.bins[n] = low;
    }
  }

  function addChart(one) {
    if (one.card) return;
    bin(one);
    one.card = make("section", { class: "card", id: `chart-${one.field}` });
    const heading = make("h3");
    heading.append(make("span", {}, `${one.label}${one.unit ? `, ${one.unit}` : ""}`));
    const away = make("button", { "aria-label": `Take ${one.label} away`, class: "screen" }, "×");
    heading.append(away);
    one.box = make("div", { role: "img" });
    const range = make("div", { class: "range" });
    one.low = make("input", { type: "number", step: "any", "aria-label": `${one.label}: at least` });
    one.high = make("input", { type: "number", step: "any", "aria-label": `${one.label}: at most` });
    one.none = make("input", { type: "checkbox", "aria-label": `${one.label}: only clips without a value` });
    const missing = make("label");
    missing.append(one.none, " not measured");
    range.append(one.low, make("span", {}, "to"), one.high, missing);
    one.card.append(heading, one.box, range);
    $("charts").append(one.card);
    const bins = one.edges.length - 1;
    const place = (value) => {
      let k = 0;
      while (k < bins - 1 && value >= one.edges[k + 1]) k++;
      return k + Math.min(1, Math.max(0, (value - one.edges[k]) / (one.edges[k + 1] - one.edges[k])));
    };
    const bars = (fill) => ({ stroke: fill, fill, width: 0, paths: uPlot.paths.bars({ size: [1, Infinity], gap: 1, align: 0 }), points: { show: false } });
    one.shown = plot(one.box, {
      height: 130,
      cursor: { drag: { x: true, y: false, setScale: false }, points: { show: false }, y: false },
      scales: { x: { time: false, range: [0, bins] }, y: { range: (_, __, most) => [0, most || 1] } },
      axes: [
        axis({ size: 22, values: (_, at) => at.map((k) => (Number.isInteger(k) && one.edges[k] !== undefined ? short(one.edges[k]) : "")) }),
        axis({ size: 44, values: (_, at) => at.map((value) => (value >= 10000 ? `${value / 1000}k` : String(value))) }),
      ],
      series: [{}, bars(() => colour("--lost")), bars(() => colour("--kept"))],
      hooks: {
        setSelect: [(chart) => {
          if (!chart.select.width) return;
          const from = Math.floor(chart.posToVal(chart.select.left, "x"));
          const to = Math.ceil(chart.posToVal(chart.select.left + chart.select.width, "x"));
          // The outermost bins hold what lies beyond them.
          one.low.value = from <= 0 ? "" : one.edges[from];
          one.high.value = to >= bins ? "" : one.edges[to];
          one.none.checked = false;
          one.brush();
        }],
        draw: [(chart) => {
          const { ctx, bbox } = chart;
          ctx.save();
          ctx.strokeStyle = colour("--mark");
          ctx.setLineDash([6, 3]);
          for (const value of one.thresholds) {
            const x = chart.valToPos(place(value), "x", true);
            ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
          }
          ctx.restore();
        }],
      },
    }, [[...Array(bins).keys()].map((k) => k + 0.5), new Array(bins).fill(0), new Array(bins).fill(0)]);
    one.chart = one.shown.chart;
    one.brush = () => {
      const [low, high] = [one.low.valueAsNumber, one.high.valueAsNumber];
      const { values } = one;
      const isUsed = one.none.checked || !Number.isNaN(low) || !Number.isNaN(high);
      one.card.classList.toggle("used", isUsed);
      filter(`range-${one.field}`, !isUsed ? null : one.none.checked ? (n) => Number.isNaN(values[n])
        : (n) => !Number.isNaN(values[n]) && !(values[n] < low) && !(values[n] > high));
      show();
    };
    one.clear = () => { one.low.value = one.high.value = ""; one.none.checked = false; one.chart.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false); };
    for (const input of [one.low, one.high, one.none]) input.addEventListener("change", one.brush);
    away.addEventListener("click", () => {
      one.clear(); one.brush();
      one.shown.remove(); one.card.remove(); one.card = null;
      drawn.splice(drawn.indexOf(one), 1);
      offer(); show();
    });
    drawn.push(one);
  }

  function offer() {
    $("add").replaceChildren(make("option", { value: "" }, "choose"));
    for (const one of measures) if (!one.card) $("add").append(make("option", { value: one.field }, one.label));
  }

  function histogram(one) {
    const own = filters.get(`range-${one.field}`);
    const bins = one.edges.length - 1;
    const all = new Array(bins).fill(0), kept = new Array(bins).fill(0);
    const bySeconds = $("weight").value === "seconds";
    for (let n = 0; n < size; n++) {
      const bin = one.bins[n];
      if (bin === 255 || fails[n] - (own ? own[n] : 0)) continue;
      const weight = bySeconds ? lengths[n] : 1;
      all[bin] += weight;
      if (states[n] === 0) kept[bin] += weight;
    }
    one.chart.setData([one.chart.data[0], all, kept]);
    const total = all.reduce((sum, value) => sum + value, 0);
    const least = all.findIndex((value) => value), most = all.findLastIndex((value) => value);
    const amount = bySeconds ? span(total) : `${counted(total)} clips`;
    one.box.setAttribute("aria-label", least < 0 ? `${one.label}: no clips` : `${one.label}: ${amount} from ${short(one.edges[least])} to ${short(one.edges[most + 1])}${one.unit ? ` ${one.unit}` : ""}`);
  }

  // ------------------------------------------------------------------------------ table

  const nameOf = (one, n) => (Number.isNaN(one.values[n]) ? "" : one.names[one.values[n]]);
  const reasonsOf = (n) => data.reasons.filter((_, k) => broken[k * size + n]);
  const digits = (value) => (Number.isNaN(value) ? "–" : String(Number(value.toPrecision(4))));
  const numberOf = (one) => ({ key: one.field, label: one.field, title: `${one.label}${one.unit ? `, ${one.unit}` : ""}`, values: one.values, cell: (n) => digits(one.values[n]), isNumber: true });
  const order = { key: "clip_id", falls: false };
  let found = new Uint32Array(0), page = 0, chosen = -1;

  const numReasons = new Uint8Array(size);
  for (let n = 0; n < broken.length; n++) numReasons[n % size] += broken[n];

  function heads() {
    return [
      { key: "clip_id", label: "clip", cell: (n) => ids[n] },
      { key: "state", label: "state", values: states, cell: (n) => data.states[states[n]] },
      { key: "reasons", label: "reasons", values: numReasons, cell: (n) => reasonsOf(n).map((reason) => reason.code).join(", ") },
      ...["uri", "person_id", "split", "language"].filter(group).map((field) => ({
        key: field, label: group(field).label.toLowerCase(), values: group(field).values, cell: (n) => nameOf(group(field), n),
      })),
      ...drawn.map(numberOf),
    ];
  }

  function sorted() {
    let count = 0;
    found = new Uint32Array(size);
    for (let n = 0; n < size; n++) if (!fails[n]) found[count++] = n;
    found = found.subarray(0, count);
    const head = heads().find((one) => one.key === order.key);
    if (head?.values) {
      const { values } = head;
      const sign = order.falls ? -1 : 1;
      // Without a value comes last, either way; equal values stay in the order of ids.
      found.sort((a, b) => {
        const [x, y] = [values[a], values[b]];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
        return sign * (x - y) || a - b;
      });
    } else if (order.falls) found.reverse();
  }

  function showRows() {
    const columns = heads();
    $("head").replaceChildren(...columns.map((head) => {
      const cell = make("th", { scope: "col", ...(head.isNumber ? { class: "n" } : {}) });
      const button = make("button", { title: head.title ?? "" }, head.label + (order.key === head.key ? (order.falls ? " ↓" : " ↑") : ""));
      cell.setAttribute("aria-sort", order.key !== head.key ? "none" : order.falls ? "descending" : "ascending");
      button.addEventListener("click", () => {
        order.falls = order.key === head.key && !order.falls;
        order.key = head.key;
        page = 0;
        sorted(); showRows();
        [...$("head").querySelectorAll("button")][columns.indexOf(head)].focus();
      });
      cell.append(button);
      return cell;
    }));
    const shown = [...found.subarray(page * PAGE, (page + 1) * PAGE)];
    $("rows").replaceChildren(...shown.map((n) => {
      const row = make("tr", { "aria-selected": String(n === chosen) });
      for (const head of columns) {
        if (head.key !== "clip_id") {
          const cell = make("td", { class: head.isNumber ? "n" : head.key === "state" ? data.states[states[n]] : "text" }, head.cell(n));
          if (!head.isNumber) cell.title = head.cell(n);
          row.append(cell);
          continue;
        }
        const button = make("button", {}, ids[n]);
        button.addEventListener("click", () => showClip(n));
        row.append(make("td"));
        row.lastChild.append(button);
      }
      return row;
    }));
    $("place").textContent = found.length ? `${counted(page * PAGE + 1)} to ${counted(page * PAGE + shown.length)} of ${counted(found.length)}` : "no clip";
    $("back").disabled = page === 0;
    $("on").disabled = (page + 1) * PAGE >= found.length;
  }

  function showGroups() {
    const one = group($("by").value);
    if (!one) return;
    const rows = [...one.names, "(none)"].map((name) => ({ name, clips: 0, seconds: 0, kept: 0, keptSeconds: 0 }));
    for (const n of found) {
      const row = rows[Number.isNaN(one.values[n]) ? rows.length - 1 : one.values[n]];
      row.clips += 1;
      row.seconds += lengths[n];
      if (states[n] === 0) { row.kept += 1; row.keptSeconds += lengths[n]; }
    }
    const largest = rows.filter((row) => row.clips).sort((a, b) => b.seconds - a.seconds);
    $("by-name").textContent = one.label.toLowerCase();
    $("groups").replaceChildren(...largest.slice(0, GROUPS).map((row) => {
      const line = make("tr");
      line.append(make("th", { scope: "row" }, row.name));
      for (const cell of [counted(row.clips), span(row.seconds), counted(row.kept), span(row.keptSeconds)]) line.append(make("td", { class: "n" }, cell));
      return line;
    }));
    $("groups-more").textContent = largest.length > GROUPS ? `The ${GROUPS} longest of ${counted(largest.length)}.` : "";
  }

  // ------------------------------------------------------------------------------ one clip

  let curves = [];

  function line(box, label, height, x, y, more) {
    const part = make("div", { class: "curve" });
    const known = y.filter((value) => value !== null);
    part.append(make("h4", {}, label), make("div", { role: "img", "aria-label": `${label}: from ${short(Math.min(...known))} to ${short(Math.max(...known))}` }));
    box.append(part);
    curves.push(plot(part.lastChild, {
      height,
      cursor: { drag: { x: false, y: false }, y: false },
      scales: { x: { time: false } },
      axes: [axis({ size: 22 }), axis({ size: 44 })],
      series: [{}, { stroke: () => colour(more), width: 1.5, points: { show: false } }],
    }, [x, y]));
  }

  function showClip(n) {
    chosen = n;
    for (const shown of curves) shown.remove();
    curves = [];
    const box = $("clip");
    box.hidden = false;
    box.replaceChildren(make("h2", { id: "id-heading" }, ids[n]));
    const sides = make("div", { class: "one" });
    const left = make("div"), right = make("div");
    sides.append(left, right);
    box.append(sides);
    const picture = data.pictures[ids[n]];
    if (picture) left.append(make("img", { src: `data:image/jpeg;base64,${picture}`, alt: `A frame of ${ids[n]} with face and lips marked` }));
    const reasons = make("ul");
    for (const reason of reasonsOf(n)) reasons.append(make("li", {}, `${reason.meaning} (${reason.code})`));
    if (text.failures[n]) reasons.append(make("li", {}, text.failures[n]));
    left.append(make("p", { class: data.states[states[n]] }, data.states[states[n]]), reasons);
    const command = make("textarea", { rows: 2, readonly: "", "aria-label": "Command that plays this clip" });
    command.value = `talkforge view ${quoted(folder)} --clip ${quoted(ids[n])}`;
    const button = make("button", { class: "screen" }, "Copy the command that plays it");
    const said = make("span", { role: "status" });
    button.addEventListener("click", () => copy(command, said));
    left.append(command, button, said);
    const own = text.curves[ids[n]];
    if (own) {
      const times = own.opening.map((_, k) => k / own.fps);
      line(right, "Opening of the mouth (gap of the lips over distance of the eyes), by seconds", 110, times, own.opening, "--mark");
      line(right, "Loudness, dB below the loudest frame, by seconds", 110, times, own.loudness, "--bar");
      if (own.sync.length) line(right, "Similarity of mouth and audio (standard deviations of chance), by seconds that the audio is delayed", 130, own.lags_s, own.sync, "--kept");
    } else right.append(make("p", {}, "This page holds pictures and curves of a sample of the clips, which this one is not in. The command plays it."));
    const values = make("dl");
    const put = (label, value) => {
      const pair = make("div");
      pair.append(make("dt", {}, label), make("dd", {}, value));
      values.append(pair);
    };
    put("Start in the source, s", digits(starts[n]));
    for (const one of groups) if (nameOf(one, n)) put(one.label, nameOf(one, n));
    for (const one of measures) if (!Number.isNaN(one.values[n])) put(`${one.label}${one.unit ? `, ${one.unit}` : ""}`, digits(one.values[n]));
    box.append(values);
    for (const row of $("rows").children) row.setAttribute("aria-selected", String(row.querySelector("button").textContent === ids[n]));
    box.focus();
    box.scrollIntoView({ block: "nearest" });
  }

  // Where a page that was opened from a disk lies is where the data set lies.
  const here = decodeURIComponent(location.pathname);
  const folder = location.protocol === "file:" && here.endsWith("/report/clips.html") ? here.slice(0, -"/report/clips.html".length) : data.name;
  const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

  // ------------------------------------------------------------------------------ all together

  function tile(name, value, all, isSpan = false) {
    const element = $(name);
    element.dataset.value = String(value);
    element.querySelector("b").textContent = isSpan ? span(value) : counted(value);
    element.querySelector("small").textContent = value === all ? "all" : `of ${isSpan ? span(all) : counted(all)}`;
  }

  let whole = null;
  function show() {
    page = 0;
    sorted();
    const now = { clips: found.length, seconds: 0, accepted: 0 };
    const sources = new Set(), people = new Set();
    const [uri, person] = [group("uri")?.values, group("person_id")?.values];
    for (const n of found) {
      now.seconds += lengths[n];
      if (states[n] === 0) now.accepted += 1;
      if (uri && !Number.isNaN(uri[n])) sources.add(uri[n]);
      if (person && !Number.isNaN(person[n])) people.add(person[n]);
    }
    Object.assign(now, { sources: sources.size, people: people.size });
    whole ??= now;
    if (!person) $("people").hidden = true;
    for (const [name, value] of Object.entries(now)) tile(name, value, whole[name], name === "seconds");
    for (const one of drawn) histogram(one);
    showGroups();
    showRows();
  }

  for (const field of data.brushed) addChart(measure(field));
  offer();
  $("add").addEventListener("change", () => { if ($("add").value) { addChart(measure($("add").value)); offer(); show(); } });
  $("weight").addEventListener("change", show);
  for (const one of groups) $("by").append(make("option", { value: one.field }, one.label));
  $("by").addEventListener("change", showGroups);
  $("back").addEventListener("click", () => { page -= 1; showRows(); });
  $("on").addEventListener("click", () => { page += 1; showRows(); });
  $("reset").addEventListener("click", () => {
    for (const input of $("asks").querySelectorAll("input, select")) { input.value = ""; input.classList.remove("used"); }
    for (const one of drawn) { one.clear(); one.card.classList.remove("used"); }
    for (const name of filters.keys()) filter(name, null);
    show();
  });
  $("copy-ids").addEventListener("click", async () => {
    $("ids").hidden = false;
    $("ids").value = [...found].map((n) => ids[n]).join("\n");
    await copy($("ids"), $("copied"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const { chart } of charts) chart.redraw(); });
  $("where").textContent = here;
  if (data.of > size) {
    $("drawn").hidden = false;
    $("drawn").textContent = `This page holds ${counted(size)} of ${counted(data.of)} clips, drawn at random by their ids: multiply counts and lengths by ${(data.of / size).toFixed(2)} to estimate those of all. The report counts every clip.`;
  }
  // An address such as clips.html#reason=face_small begins with a filter.
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const input = $("asks").querySelector(`[data-filter="${CSS.escape(name)}"]`);
    if (!input) continue;
    const option = [...(input.options ?? [])].find((one) => one.textContent === value);
    input.value = input.options ? (option?.value ?? "") : value;
    input.dispatchEvent(new Event("input"));
  }
  show();
  $("page").dataset.ready = "true";
})();
