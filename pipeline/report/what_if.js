// Applies the rules as `talkforge select` does (curation/verdict.py, curation/duplicates.py), live.
"use strict";
(async () => {
  const data = JSON.parse($("data").textContent);
  const size = data.num_clips;
  const table = new Float64Array(await unpack(data.table));
  const column = (n) => table.subarray(n * size, (n + 1) * size);
  const [durations, sources, people, languages] = [0, 1, 2, 3].map(column);
  const isKept = new Uint8Array(size);
  for (const n of data.kept) isKept[n] = 1;

  const fails = new Uint16Array(size); // rules that each clip breaks
  const rules = data.rules.map((rule, n) => ({
    ...rule, values: column(4 + n), broken: new Uint8Array(size), now: rule.threshold,
    last: rule.threshold ?? (rule.at_least ? rule.low : rule.high),
  }));

  // A value that is missing breaks a rule that needs it, and passes any other.
  function judge(rule) {
    for (let n = 0; n < size; n++) {
      const value = rule.values[n];
      let fault = 0;
      if (rule.now !== null) {
        if (Number.isNaN(value)) fault = rule.needed ? 1 : 0;
        else fault = (rule.at_least ? value < rule.now : value > rule.now) ? 1 : 0;
      }
      fails[n] += fault - rule.broken[n];
      rule.broken[n] = fault;
    }
  }

  // Where the page holds a sample of the clips, it stands for all of them.
  const scale = size ? data.of / size : 1;
  const isSample = data.of > size;

  // Half of the 95 % interval of a total over all clips, of which `size` were drawn without replacement: normal
  // approximation, from the sum and the sum of squares over the sample.
  function reach(sum, squares) {
    const variance = (squares - (sum * sum) / size) / Math.max(size - 1, 1);
    return 1.96 * data.of * Math.sqrt(Math.max((1 - size / data.of) * variance, 0) / size);
  }

  function count() {
    const isAccepted = new Uint8Array(size);
    for (let n = 0; n < size; n++) isAccepted[n] = isKept[n] || fails[n] === 0 ? 1 : 0;
    const repeats = new Set();
    for (const [first, second] of data.repeats) {
      if (!isAccepted[first] || !isAccepted[second] || repeats.has(first) || repeats.has(second)) continue;
      repeats.add(second);
    }
    for (const n of repeats) if (!isKept[n]) isAccepted[n] = 0;
    const found = { clips: 0, seconds: 0, squares: 0, sources: new Set(), people: new Set(), languages: new Set() };
    const alone = rules.map(() => ({ clips: 0, seconds: 0 }));
    for (let n = 0; n < size; n++) {
      if (isAccepted[n]) {
        found.clips += 1;
        found.seconds += durations[n];
        found.squares += durations[n] ** 2;
        found.sources.add(sources[n]);
        if (!Number.isNaN(people[n])) found.people.add(people[n]);
        if (!Number.isNaN(languages[n])) found.languages.add(languages[n]);
      } else if (fails[n] === 1) {
        const only = alone[rules.findIndex((rule) => rule.broken[n])];
        only.clips += 1;
        only.seconds += durations[n];
      }
    }
    for (const one of [found, ...alone]) {
      one.clips = Math.round(one.clips * scale);
      one.seconds *= scale;
    }
    const sizes = Object.entries(found).map(([name, value]) => [name, value.size ?? value]);
    return { ...Object.fromEntries(sizes), alone };
  }

  let before = null;
  function show() {
    const found = count();
    before ??= found;
    for (const name of ["clips", "seconds", "sources", "people", "languages"]) {
      const tile = $(name);
      tile.dataset.value = String(found[name]);
      tile.querySelector("b").textContent = name === "seconds" ? span(found[name]) : counted(found[name]);
      const change = found[name] - before[name];
      const text = name === "seconds" ? span(Math.abs(change)) : counted(Math.abs(change));
      let note = change ? `${change < 0 ? "−" : "+"}${text}` : "as selected";
      if (isSample && name === "clips") note += `, ± ${counted(Math.round(reach(found.clips / scale, found.clips / scale)))}`;
      else if (isSample && name === "seconds") note += `, ± ${span(reach(found.seconds / scale, found.squares))}`;
      else if (isSample) note = `in the sample, ${note}`;
      tile.querySelector("small").textContent = note;
    }
    rules.forEach((rule, n) => {
      const { clips, seconds } = found.alone[n];
      rule.cell.textContent = clips ? `${span(seconds)}, ${counted(clips)}` : "–";
    });
    const most = found.alone.reduce((best, one, n) => (one.seconds > found.alone[best].seconds ? n : best), 0);
    $("next").textContent = rules.length && found.alone[most].clips
      ? `Next: “${rules[most].meaning}” alone rejects ${span(found.alone[most].seconds)} in ${counted(found.alone[most].clips)} clips.`
      : "No rule alone rejects anything.";
    write();
  }

  function write() {
    const changed = rules.filter((rule) => rule.now !== rule.threshold);
    const settings = changed.map((rule) => ` -s thresholds.${rule.name}=${JSON.stringify(rule.now)}`);
    $("command").value = `talkforge select DATASET${settings.join("")}`;
    const thresholds = { ...data.config.thresholds };
    for (const rule of changed) thresholds[rule.name] = rule.now;
    const section = (name, values) =>
      `${name}:\n` + Object.entries(values).map(([key, value]) => `  ${key}: ${JSON.stringify(value)}\n`).join("");
    $("yaml").value = section("thresholds", thresholds) + section("shards", data.config.shards);
  }

  // ------------------------------------------------------------------------------ controls

  const STEPS = 1000;
  const rounded = (rule, value) => (rule.whole ? Math.round(value) : Number(value.toPrecision(4)));

  function set(rule, value) {
    rule.now = value;
    if (value !== null) rule.last = value;
    rule.isOn.checked = value !== null;
    rule.number.value = String(rule.last);
    rule.slider.value = String(Math.round(((rule.last - rule.low) / (rule.high - rule.low || 1)) * STEPS));
    rule.slider.setAttribute("aria-valuetext", `${rule.last} ${rule.unit}`);
    rule.number.disabled = rule.slider.disabled = value === null;
    rule.row.classList.toggle("changed", rule.now !== rule.threshold);
    judge(rule);
  }

  for (const rule of rules) {
    rule.row = make("tr", { id: rule.name });
    rule.isOn = make("input", { type: "checkbox", "aria-label": `${rule.name}: in force` });
    const label = { "aria-label": `${rule.name}: ${rule.description}` };
    rule.slider = make("input", { type: "range", min: 0, max: STEPS, ...label });
    rule.number = make("input", { type: "number", step: rule.whole ? 1 : "any", ...label });
    rule.cell = make("td", { class: "n" });
    const name = make("th", { scope: "row" }, rule.meaning);
    name.append(make("small", {}, `${rule.description}${rule.unit ? `, ${rule.unit}` : ""}`));
    const side = make("td", {}, rule.at_least ? "at least" : "at most");
    for (const [input, cell] of [[rule.isOn, "td"], [name, null], [side, null], [rule.slider, "td"], [rule.number, "td"], [rule.cell, null]]) {
      if (!cell) rule.row.append(input);
      else rule.row.appendChild(make(cell)).append(input);
    }
    rule.isOn.addEventListener("change", () => (set(rule, rule.isOn.checked ? rule.last : null), show()));
    rule.slider.addEventListener("input", () => {
      const value = rounded(rule, rule.low + ((rule.high - rule.low) * rule.slider.value) / STEPS);
      set(rule, value);
      show();
    });
    rule.number.addEventListener("change", () => {
      if (rule.number.value === "" || !Number.isFinite(rule.number.valueAsNumber)) return set(rule, rule.now);
      set(rule, rule.whole ? Math.round(rule.number.valueAsNumber) : rule.number.valueAsNumber);
      show();
    });
    $("rules").append(rule.row);
    set(rule, rule.threshold);
  }
  $("reset").addEventListener("click", () => {
    for (const rule of rules) set(rule, rule.threshold);
    show();
  });
  for (const name of ["command", "yaml"]) {
    $(`copy-${name}`).addEventListener("click", () => copy($(name), $("copied")));
  }
  if (!data.knows_repeats) {
    $("sample").hidden = false;
    $("sample").textContent = (isSample
      ? `An estimate: this page holds ${counted(size)} of the ${counted(data.of)} clips that thresholds decide on, drawn at random by their ids. Clips and length are those of all, with 95 % intervals. ` : "")
      + "Near duplicates stay as they were selected last.";
  }
  show();
  $("page").dataset.ready = "true";
})();
