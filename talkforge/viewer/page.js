// The page on which people look at clips. `$`, `ask`, `say` and `element` are local_page.js's.

const video = $("video");
const isAudit = document.body.classList.contains("audit");
const UNSHOWN = new Set(["clip_id", "reasons", "reason_details", "accepted", "failure"]);
const COLOURS = { box: "#ffc43d", mesh: "#5ee2ec", lips: "#ff4081", joints: "#78e65a" };

let about = null;
let list = { total: 0, first: 0, clips: [] }; // one page of ids, and where it lies among all of the filter
let index = 0; // of the clip that is shown, among all of the filter
let clip = null;
let marks = null; // name -> Float32Array
let loudness = null; // one level for each frame, 0 to 1
let drawing = true;
let saving = Promise.resolve(); // one after the other, so that the last key wins

// ------------------------------------------------------------------------------- which clip

function query(more) {
  const wanted = { show: $("show").value, reason: $("reason").value, begins: $("begins").value.trim() };
  return "clips?" + new URLSearchParams({ ...(isAudit ? {} : wanted), ...more });
}

async function listed(more) {
  list = await ask(query(more));
  about.labelled = list.labelled;
}

async function go(to) {
  if (!list.total) return show(null);
  index = Math.min(Math.max(to, 0), list.total - 1);
  if (index < list.first || index >= list.first + list.clips.length) {
    await listed({ first: Math.floor(index / 200) * 200 });
  }
  return show(list.clips[index - list.first]);
}

async function refilter(at = "") {
  try {
    await listed(at ? { at } : {});
    const place = list.clips.indexOf(at);
    await go(place < 0 ? 0 : list.first + place);
  } catch (error) {
    say(error.message, true);
  }
}

async function show(id) {
  marks = loudness = null;
  video.hidden = false;
  $("image").hidden = true;
  if (id === null) {
    clip = null;
    video.removeAttribute("src");
    video.load();
    for (const name of ["clip", "verdict", "text"]) $(name).textContent = "";
    for (const name of ["facts", "details"]) $(name).replaceChildren();
    progress();
    draw();
    return say("no clip is left by this filter");
  }
  say("");
  try {
    const found = await ask(`clip/${id}`);
    clip = found;
  } catch (error) {
    clip = null;
    return say(error.message, true);
  }
  history.replaceState(null, "", `#${id}`);
  describe();
  video.src = `clip/${id}/video`;
  video.play().catch(() => {}); // a browser may want a key first
  if (clip.marks) loadMarks(id);
  listen(id);
  const after = list.clips[index + 1 - list.first];
  if (after) fetch(`clip/${after}/video`, { headers: { Range: "bytes=0-0" } }).catch(() => {}); // is cut ahead
}

video.addEventListener("error", async () => {
  if (!clip || !video.getAttribute("src")) return;
  const id = clip.clip_id;
  try {
    await ask(`clip/${id}/video`);
    say("this browser cannot play the clip", true);
  } catch (error) {
    say(error instanceof SyntaxError ? "this browser cannot play the clip" : error.message, true);
  }
  video.hidden = true;
  $("image").hidden = false;
  $("image").src = `clip/${id}/image`;
});

async function loadMarks(id) {
  const bytes = await (await fetch(`clip/${id}/marks`)).arrayBuffer();
  if (!clip || clip.clip_id !== id) return;
  const found = {};
  let at = 0;
  for (const [name, shape] of Object.entries(clip.marks)) {
    const length = shape.reduce((a, b) => a * b, 1);
    found[name] = new Float32Array(bytes, at, length);
    at += 4 * length;
  }
  marks = found;
  draw();
}

// The level under each frame, from the sound that is played.
async function listen(id) {
  try {
    const bytes = await (await fetch(`clip/${id}/video`)).arrayBuffer();
    const audio = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes);
    if (!clip || clip.clip_id !== id) return;
    const samples = audio.getChannelData(0);
    loudness = new Float32Array(clip.num_frames);
    for (let k = 0; k < clip.num_frames; k++) {
      const from = Math.round((k / clip.fps) * audio.sampleRate);
      const to = Math.min(Math.round(((k + 1) / clip.fps) * audio.sampleRate), samples.length);
      let power = 0;
      for (let n = from; n < to; n++) power += samples[n] * samples[n];
      loudness[k] = Math.max(0, 1 + Math.log10(power / Math.max(1, to - from) + 1e-12) / 6); // -60 dB is 0
    }
    draw();
  } catch {
    // no sound, or none that this browser decodes: the curve stays away
  }
}

// ------------------------------------------------------------------------------ what is known

function isHidden() {
  return isAudit && clip.review.label === "none"; // whoever knows the verdict labels by it
}

function describe() {
  const row = clip.row;
  $("clip").textContent = clip.clip_id;
  const state = row.failure ? "failed" : row.accepted ? "accepted" : "rejected";
  const hidden = isHidden();
  $("verdict").className = hidden ? "" : state;
  $("verdict").textContent = hidden ? "The verdict is shown when the clip has a label." : state;
  const lines = row.failure ? [row.failure] : [...(row.reason_details || [])];
  if ((row.overruled || []).length) lines.push(`overruled by a reviewer: ${row.overruled.join(", ")}`);
  if (row.stopped_by) lines.push(`not measured densely (${row.stopped_by})`);
  if (!row.shard) lines.push("in no shard: cut out of its source for this page");
  $("details").replaceChildren(...(hidden ? [] : lines).map((line) => element("li", line)));
  $("text").textContent = clip.text;
  const isThere = ([name, value]) => !UNSHOWN.has(name) && value !== "" && value.length !== 0;
  const facts = Object.entries(row).filter(isThere);
  $("facts").replaceChildren(
    ...(hidden ? [] : facts).map(([name, value]) => {
      const tr = document.createElement("tr");
      tr.append(element("td", name), element("td", shown(value)));
      return tr;
    }),
  );
  const said = clip.review;
  press("keep", said.decision === "keep");
  press("drop", said.decision === "drop");
  press("rules", said.decision === "none");
  press("good", said.label === "good");
  press("bad", said.label === "bad");
  for (const button of $("why").querySelectorAll("button")) {
    const code = about.bad[button.dataset.number - 1];
    button.setAttribute("aria-pressed", String(said.reason === code));
  }
  $("note").value = said.note;
  progress();
}

function progress() {
  const place = list.total ? `clip ${index + 1} of ${list.total}` : "no clips";
  $("progress").textContent = isAudit ? `${place}, ${about.labelled} labelled` : place;
}

function shown(value) {
  if (typeof value === "number" && !Number.isInteger(value)) return String(Number(value.toPrecision(5)));
  return Array.isArray(value) ? value.join(", ") : String(value);
}

function press(id, isOn) {
  $(id).setAttribute("aria-pressed", String(isOn));
}

// ---------------------------------------------------------------------------------- drawing

function frameNow(time = video.currentTime) {
  return Math.min(Math.max(Math.floor(time * clip.fps + 1e-3), 0), clip.num_frames - 1);
}

function draw(time) {
  const canvas = $("marks");
  const context = canvas.getContext("2d");
  const width = video.clientWidth;
  const height = video.clientHeight;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  canvas.style.left = `${video.offsetLeft}px`;
  canvas.style.top = `${video.offsetTop}px`;
  context.clearRect(0, 0, width, height);
  if (!clip) return;
  const frame = frameNow(time);
  $("frame").dataset.frame = String(frame);
  if (marks && drawing && !video.hidden) drawMarks(context, frame, width / clip.width_px, height / clip.height_px);
  drawCurves(frame);
}

// Pixel centres are at whole numbers, so half a pixel is added.
function drawMarks(context, frame, sx, sy) {
  const at = (x, y) => [(x + 0.5) * sx, (y + 0.5) * sy];
  const points = row("landmarks", frame);
  let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
  context.fillStyle = COLOURS.mesh;
  for (let n = 0; n < points.length; n += 2) {
    if (Number.isNaN(points[n])) continue;
    const [x, y] = at(points[n], points[n + 1]);
    context.fillRect(x - 0.5, y - 0.5, 1, 1);
    [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x), Math.max(y1, y)];
  }
  context.lineWidth = 2;
  if (x1 > x0) {
    context.strokeStyle = COLOURS.box;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  const contour = row("contour", frame);
  if (marks.valid[frame] && !Number.isNaN(contour[0])) {
    context.strokeStyle = COLOURS.lips;
    context.beginPath();
    for (let n = 0; n < contour.length; n += 2) context.lineTo(...at(contour[n], contour[n + 1]));
    context.closePath();
    context.stroke();
  }
  context.fillStyle = COLOURS.joints;
  const joints = row("joints", frame);
  for (let n = 0; n < joints.length; n += 3) {
    if (Number.isNaN(joints[n]) || joints[n + 2] < 0.3) continue;
    const [x, y] = at(joints[n], joints[n + 1]);
    context.beginPath();
    context.arc(x, y, 3, 0, 2 * Math.PI);
    context.fill();
  }
}

function row(name, frame) {
  const length = marks[name].length / clip.num_frames;
  return marks[name].subarray(frame * length, (frame + 1) * length);
}

function drawCurves(frame) {
  const canvas = $("curves");
  const context = canvas.getContext("2d");
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width;
  canvas.height = height;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
  const x = (k) => ((k + 0.5) / clip.num_frames) * width;
  const line = (values, largest, name) => {
    context.strokeStyle = colour(name);
    context.lineWidth = 1.5;
    context.beginPath();
    let isOn = false;
    values.forEach((value, k) => {
      if (Number.isNaN(value)) return (isOn = false);
      const y = (height - 8) * (1 - Math.min(value / largest, 1)) + 1;
      if (isOn) context.lineTo(x(k), y);
      else context.moveTo(x(k), y);
      isOn = true;
    });
    context.stroke();
  };
  if (loudness) line(loudness, 1, "loudness");
  if (marks) {
    const known = marks.opening.filter((value) => !Number.isNaN(value));
    line(marks.opening, Math.max(0.05, ...known), "opening");
    for (let k = 0; k < clip.num_frames; k++) {
      context.fillStyle = colour(["missing", "interpolated", "measured"][marks.valid[k]]);
      context.fillRect((k / clip.num_frames) * width, height - 6, width / clip.num_frames + 0.5, 6);
    }
  }
  context.fillStyle = colour("ink");
  context.fillRect(x(frame) - 0.5, 0, 1, height);
}

// In time with the frames that are shown, where the browser tells them.
if ("requestVideoFrameCallback" in HTMLVideoElement.prototype) {
  const tick = (_, shownFrame) => {
    draw(shownFrame.mediaTime);
    video.requestVideoFrameCallback(tick);
  };
  video.requestVideoFrameCallback(tick);
} else {
  const tick = () => {
    if (!video.paused) draw();
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}
for (const event of ["seeked", "loadedmetadata"]) video.addEventListener(event, () => draw());
addEventListener("resize", () => draw());

// -------------------------------------------------------------------------------- decisions

function review(change, next = false) {
  if (!clip) return;
  const id = clip.clip_id;
  saving = saving.then(async () => {
    const had = clip && clip.clip_id === id ? clip.review.label : null;
    try {
      const saved = await ask(`clip/${id}/review`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(change),
      });
      if (had === "none" && saved.label !== "none") about.labelled += 1;
      if (had !== null && had !== "none" && saved.label === "none") about.labelled -= 1;
      if (clip && clip.clip_id === id) {
        clip.review = saved;
        describe();
        if (next) await go(index + 1);
      }
      say(`${id}: saved`);
    } catch (error) {
      say(`${id}: not saved: ${error.message}`, true);
    }
  });
}

const ACTIONS = {
  n: () => go(index + 1),
  p: () => go(index - 1),
  " ": () => (video.paused ? video.play().catch(() => {}) : video.pause()),
  l: () => {
    drawing = !drawing;
    press("draw", drawing);
    draw();
  },
  ",": () => step(-1),
  ".": () => step(1),
  k: () => !isAudit && review({ decision: "keep" }),
  d: () => !isAudit && review({ decision: "drop" }),
  u: () => !isAudit && review({ decision: "none" }),
  g: () => review({ label: "good", reason: "" }, isAudit),
  b: () => review({ label: "bad" }),
  ArrowRight: () => go(index + 1),
  ArrowLeft: () => go(index - 1),
};

function step(frames) {
  video.pause();
  video.currentTime = (frameNow() + frames + 0.5) / clip.fps;
}

function because(number) {
  const reason = about.bad[number - 1];
  if (reason) review({ label: "bad", reason }, isAudit);
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !about) return;
  const isField = event.target.matches("input, select");
  if (isField && event.key === "Escape") return event.target.blur();
  if (isField) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = key >= "1" && key <= "9" ? () => because(Number(key)) : ACTIONS[key];
  if (!action) return;
  event.preventDefault();
  action();
});

const BUTTONS = {
  previous: "p", play: " ", next: "n", draw: "l", keep: "k", drop: "d", rules: "u", good: "g", bad: "b",
};
for (const [id, key] of Object.entries(BUTTONS)) {
  $(id).addEventListener("click", (event) => {
    event.currentTarget.blur(); // the space bar plays
    ACTIONS[key]();
  });
}
$("why").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) because(Number(button.dataset.number));
});
$("filter").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["show", "reason"]) $(id).addEventListener("change", (event) => {
  event.target.blur();
  refilter();
});
$("begins").addEventListener("change", () => refilter());
$("note").addEventListener("change", () => review({ note: $("note").value }));

(async () => {
  try {
    about = await ask("about");
    for (const [code, meaning] of Object.entries(about.reasons)) {
      const option = element("option", `${code}: ${meaning}`);
      option.value = code;
      $("reason").append(option);
    }
    await refilter(decodeURIComponent(location.hash.slice(1)) || about.first);
  } catch (error) {
    say(error.message, true);
  }
})();
