// The page on which a portrait speaks. `$`, `ask`, `say` and `element` are local_page.js's.

const POLL_MS = 400;

let about = null;
let face = null; // number of the face that speaks
let ready = { portrait: false, audio: false };
let working = false;
let shown = 0; // videos that are listed
let recorder = null;
let version = 0; // of portrait and audio, so that the browser asks for the new ones

function enable() {
  $("make").disabled = working || !ready.portrait || !ready.audio;
  $("cancel").disabled = !working;
}

// ------------------------------------------------------------------------------- portrait

function showPortrait(found) {
  ready.portrait = true;
  face = found.face;
  version += 1;
  $("portrait").src = `portrait?v=${version}`;
  $("pictures").hidden = false;
  for (const old of $("faces").querySelectorAll("button")) old.remove();
  for (const one of found.faces) {
    const [left, top, right, bottom] = one.box.map((value) => Math.min(1, Math.max(0, value)));
    const button = element("button", "", { type: "button", "data-face": one.number, title: `${one.number} ${one.place}` });
    button.append(element("span", String(one.number)));
    button.setAttribute("aria-label", `Face ${one.number}, ${one.place}, speaks`);
    button.style.left = `${100 * left}%`;
    button.style.top = `${100 * top}%`;
    button.style.width = `${100 * (right - left)}%`;
    button.style.height = `${100 * (bottom - top)}%`;
    button.addEventListener("click", () => choose(one.number));
    $("faces").append(button);
  }
  const count = found.faces.length;
  $("faces-text").textContent =
    count == 0 ? "No face was found: the middle of the image is taken, without an identity."
    : count == 1 ? "One face." : `${count} faces. The marked one speaks: click on another to change that.`;
  choose(face);
  enable();
}

function choose(number) {
  face = number;
  for (const button of $("faces").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.face) === number));
  }
  $("frame").src = `frame?v=${version}` + (number === null ? "" : `&face=${number}`);
}

// ------------------------------------------------------------------------------- audio

function showAudio(found) {
  ready.audio = true;
  version += 1;
  $("audio").src = `audio?v=${version}`;
  $("audio").hidden = false;
  $("audio-text").textContent = `${found.duration_s.toFixed(2)} s: a video of ${found.frames} frames`;
  enable();
}

async function hand(path, data, show) {
  try {
    say("reading ...");
    const found = await ask(path, { method: "POST", body: data });
    say("");
    show(found);
  } catch (error) {
    say(error.message, true);
  }
}

async function record() {
  if (recorder) return recorder.stop();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const pieces = [];
    recorder = new MediaRecorder(stream);
    recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
    recorder.addEventListener("stop", () => {
      for (const track of stream.getTracks()) track.stop();
      const kind = recorder.mimeType;
      recorder = null;
      $("record").setAttribute("aria-pressed", "false");
      $("record").textContent = "Record";
      hand("audio", new Blob(pieces, { type: kind }), showAudio);
    });
    recorder.start();
    $("record").setAttribute("aria-pressed", "true");
    $("record").textContent = "Stop";
    say("recording ...");
  } catch (error) {
    recorder = null;
    say(`no microphone: ${error.message}`, true);
  }
}

// ------------------------------------------------------------------------------- settings

function showControls(controls) {
  for (const one of controls) {
    const label = element("label");
    label.append(element("span", one.label));
    let field;
    if (one.kind === "select") {
      field = element("select");
      for (const option of one.options) field.append(element("option", option, { value: option }));
    } else {
      field = element("input", "", { type: one.kind, autocomplete: "off" });
      for (const key of ["min", "max", "step"]) if (key in one) field.setAttribute(key, one[key]);
    }
    field.value = one.value;
    field.name = one.name;
    if (one.kind === "range") {
      const output = element("output", String(one.value));
      field.addEventListener("input", () => { output.textContent = field.value; });
      label.append(output);
    }
    label.append(field);
    $("settings").append(label);
  }
}

function asked() {
  const found = { sample: {} };
  if (face !== null) found.face = face;
  for (const { name, kind, label } of about.controls) {
    const field = $("settings").elements[name];
    const number = kind === "range" || kind === "number";
    if (number && (field.value === "" || !field.checkValidity())) {
      throw new Error(`${label}: ${field.validationMessage || "expected a number"}`);
    }
    const value = number ? Number(field.value) : field.value;
    if (name.startsWith("sample.")) found.sample[name.slice(7)] = value;
    else found[name] = value;
  }
  return found;
}

// ------------------------------------------------------------------------------- the video

function showState(state) {
  working = state.status === "working";
  enable();
  const bar = $("progress");
  if (working && !state.total) bar.removeAttribute("value");
  else bar.value = working ? state.done / state.total : state.status === "done" ? 1 : 0;
  for (; shown < state.videos.length; shown += 1) addVideo(shown + 1, state.videos[shown]);
  if (working) say(state.detail ? `${state.phase}: ${state.detail}` : state.phase);
  else if (state.status === "done") say("done");
  else if (state.status === "failed") say(state.error, true);
  else if (state.status === "cancelled") say("cancelled: the same portrait, audio and settings go on from here");
}

function addVideo(number, name) {
  const row = element("li");
  const play = element("button", `Play ${name}`, { type: "button" });
  play.addEventListener("click", () => playVideo(number));
  const link = element("a", "Download", { href: `video/${number}`, download: name });
  row.append(play, " ", link);
  $("videos").append(row);
  playVideo(number);
}

function playVideo(number) {
  $("video").src = `video/${number}`;
  $("video").play().catch(() => {}); // a browser may want a click first
}

async function follow() {
  for (;;) {
    const state = await ask("state");
    showState(state);
    if (state.status !== "working") return;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

async function make() {
  try {
    const state = await ask("make", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked()),
    });
    showState(state);
    await follow();
  } catch (error) {
    say(error.message, true);
  }
}

async function cancel() {
  try {
    await ask("cancel", { method: "POST" });
  } catch (error) {
    say(error.message, true);
  }
}

async function begin() {
  try {
    about = await ask("about");
    const sizes = about.sizes.map(([height, width]) => `${width} x ${height}`).join(", ");
    $("model").textContent = `${sizes} px, ${about.fps} frames/s` + (about.face_branch ? "" : ", no face branch");
    showControls(about.controls);
    if (about.portrait) showPortrait(about.portrait);
    if (about.audio) showAudio(about.audio);
    await follow();
  } catch (error) {
    say(error.message, true);
  }
}

$("portrait-file").addEventListener("change", (event) => {
  if (event.target.files.length) hand("portrait", event.target.files[0], showPortrait);
});
$("audio-file").addEventListener("change", (event) => {
  if (event.target.files.length) hand("audio", event.target.files[0], showAudio);
});
$("record").addEventListener("click", record);
$("make").addEventListener("click", make);
$("cancel").addEventListener("click", cancel);
$("settings").addEventListener("submit", (event) => event.preventDefault());
begin();
