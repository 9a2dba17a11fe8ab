// What the pages with a script share.
"use strict";
const $ = (id) => document.getElementById(id);

// Bytes that `packed` of pages.py has packed.
async function unpack(text) {
  const decoded = atob(text);
  const bytes = new Uint8Array(decoded.length);
  for (let n = 0; n < decoded.length; n++) bytes[n] = decoded.charCodeAt(n);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function make(tag, attributes = {}, text = "") {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

const span = (seconds) =>
  seconds < 100 ? `${seconds.toFixed(1)} s` : seconds < 6000 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;

const counted = (number) => number.toLocaleString("en");

// Copy what an input or a text area holds, and say so in the element `said`.
async function copy(input, said) {
  input.select();
  try {
    await navigator.clipboard.writeText(input.value);
  } catch {
    document.execCommand("copy"); // a file that is opened from a disk may have no clipboard
  }
  said.textContent = "copied";
}
