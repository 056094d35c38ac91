// The dialog of one clip, or of an uploaded file: its video, its caption, questions, and boxes whose entities are named.
import { $, address, api, make, nameOf, part, player, time, warn } from "./parts.js";

const opened = $("#opened");
const screen = $("#media");
const box = $("#box");
const sheet = $("#sheet");
const draw = $("#draw");
const WHOLE = [0, 0, 1, 1];

let current = { query: {}, file: null }; // what questions are about
let region = WHOLE;
let fileAddress = "";

export function setOffers(offers) {
  for (const name of ["ask", "entities"]) $(`#${name}`).hidden = !offers.includes(name);
  $("#similar").hidden = !offers.includes("search");
}

function fit(width, height) {
  if (width && height) screen.style.setProperty("--ratio", width / height);
}

function put(element) {
  for (const video of screen.querySelectorAll("video")) video.pause();
  while (screen.firstElementChild !== sheet) screen.firstElementChild.remove();
  screen.style.removeProperty("--ratio");
  screen.prepend(element);
  setDrawing(false);
  setRegion(WHOLE);
}

function setCaption(text) {
  const caption = $("#caption");
  caption.textContent = text;
  caption.className = "clamped";
  $("#more").setAttribute("aria-expanded", "false");
  $("#more").textContent = "more";
  if (!opened.open) opened.showModal(); // its size is known only then
  $("#more").hidden = caption.scrollHeight <= caption.clientHeight + 1;
}
$("#more").onclick = () => {
  const open = $("#caption").classList.toggle("clamped") === false;
  $("#more").setAttribute("aria-expanded", String(open));
  $("#more").textContent = open ? "less" : "more";
};

function clearAnswers() {
  for (const list of opened.querySelectorAll("dl")) list.replaceChildren();
  for (const line of opened.querySelectorAll("section .warning")) warn(line, "");
}

// hits: those of the page, among which the arrows move.
export function showClip(hit, hits, offset) {
  current = { query: { clip: hit.key }, file: null };
  put(player(hit, { controls: true }, fit));
  clearAnswers();

  const where = [hit.path, part(hit)].filter(Boolean).join(" · ");
  const lines = [where];
  if (hit.duration !== null) lines.push(`duration: ${time(hit.duration)}`);
  for (const [name, value] of Object.entries(hit.columns)) if (value !== null) lines.push(`${name}: ${value}`);
  if (hit.similarity !== null) lines.push(`similarity: ${hit.similarity.toFixed(3)}`);
  if (hit.match !== null) lines.push(`match: ${hit.match.toFixed(3)}`);
  if (hit.note) lines.push(hit.note);
  $("#facts").textContent = lines.join("\n");
  $("#actions").hidden = false;
  $("#copy").textContent = "Copy path";
  $("#copy").dataset.path = hit.path;
  $("#similar").href = address({ clip: hit.key, text: null, file: null, offset: null, open: null });

  const place = hits.findIndex((other) => other.key === hit.key);
  const found = place >= 0;
  $("#position").textContent = found ? `${offset + place + 1}` : "";
  $("#before").disabled = !found || place === 0;
  $("#after").disabled = !found || place === hits.length - 1;
  setCaption(hit.caption ?? nameOf(hit)); // it opens the dialog, whose first enabled button gets the focus
}

export function showFile(file) {
  current = { query: {}, file };
  if (fileAddress) URL.revokeObjectURL(fileAddress);
  fileAddress = URL.createObjectURL(file);
  const isImage = file.type.startsWith("image/");
  const values = isImage ? { alt: file.name } : { controls: true, muted: true, loop: true, autoplay: true };
  const element = make(isImage ? "img" : "video", values);
  element.onload = () => fit(element.naturalWidth, element.naturalHeight);
  element.onloadedmetadata = () => fit(element.videoWidth, element.videoHeight);
  element.onerror = () => element.replaceWith(make("p", { className: "gone", textContent: "this browser does not show this file" }));
  element.src = fileAddress;
  put(element);
  clearAnswers();
  $("#facts").textContent = "";
  $("#actions").hidden = true;
  $("#position").textContent = "";
  for (const arrow of ["#before", "#after"]) $(arrow).disabled = true;
  setCaption(file.name);
}

export function hideClip() {
  for (const video of screen.querySelectorAll("video")) video.pause();
  if (opened.open) opened.close();
}

$("#copy").onclick = async ({ target }) => {
  try {
    await navigator.clipboard.writeText(target.dataset.path);
    target.textContent = "Copied";
  } catch {
    // Browsers allow it on https and on this machine only.
    getSelection().selectAllChildren($("#facts"));
    target.textContent = "Selected: press Ctrl-C";
  }
};

// Boxes

function setDrawing(on) {
  sheet.hidden = !on;
  $("#hint").hidden = !on;
  draw.setAttribute("aria-pressed", String(on));
}
function setRegion(place) {
  region = place;
  const whole = place === WHOLE;
  box.hidden = whole;
  $("#name").textContent = whole ? "Name what is shown" : "Name what the box shows";
  ["left", "top", "width", "height"].forEach((side, i) => (box.style[side] = `${100 * place[i]}%`));
}
draw.onclick = () => {
  const on = sheet.hidden;
  setDrawing(on);
  if (!on) setRegion(WHOLE);
};

let start = null;
function at(event) {
  const area = sheet.getBoundingClientRect();
  const inside = (value) => Math.min(1, Math.max(0, value));
  return [inside((event.clientX - area.left) / area.width), inside((event.clientY - area.top) / area.height)];
}
sheet.onpointerdown = (event) => {
  event.preventDefault();
  sheet.setPointerCapture(event.pointerId);
  start = at(event);
};
sheet.onpointermove = sheet.onpointerup = (event) => {
  if (!start) return;
  const end = at(event);
  const size = [Math.abs(start[0] - end[0]), Math.abs(start[1] - end[1])];
  const corner = [Math.min(start[0], end[0]), Math.min(start[1], end[1])];
  setRegion(Math.min(...size) > 0.02 ? [...corner, ...size] : WHOLE);
  if (event.type === "pointerup") start = null;
};
sheet.onpointercancel = () => (start = null);

// Questions and entities

for (const name of ["ask", "entities"]) {
  $(`#${name} form`).onsubmit = async (event) => {
    event.preventDefault();
    document.activeElement.blur(); // the arrow keys go to the next hit again
    const asked = current;
    const list = $(`#${name} dl`);
    const form = Object.fromEntries(new FormData(event.target));
    const query = { ...asked.query, k: 5 };
    if (name === "ask") query.question = form.question;
    else query.box = region.map((value) => value.toFixed(3)).join(",");

    const line = $(`#${name} .warning`);
    warn(line, "");
    list.replaceChildren(make("dt", { className: "head", textContent: "…" }));
    try {
      const { note, answers, entities } = await api(name, query, asked.file);
      if (asked !== current) return; // another clip is shown by now
      warn(line, note);
      const rows = [];
      for (const { text, probability } of answers ?? entities) {
        const percent = make("span", { textContent: `${(100 * probability).toFixed(1)} %` });
        rows.push(make("dt", { textContent: text }), make("dd", {}, make("meter", { value: probability }), percent));
      }
      list.replaceChildren(...rows);
      list.scrollIntoView({ block: "nearest" });
    } catch (error) {
      if (asked === current) list.replaceChildren(make("dt", { className: "head", textContent: error.message }));
    }
  };
}
