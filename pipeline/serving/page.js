// The page of `alpro serve`. Its state is the query of its address: text, filter, k, offset, clip (similar to it), open.
const $ = (selector) => document.querySelector(selector);
const make = (tag, values = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), values);
  element.append(...children);
  return element;
};
const search = $("#search"), opened = $("#opened"), media = $("#media"), box = $("#box");
let offers = [], shown = 0, upload = null, current = {}, region = "";

async function api(name, query = {}, file = null) {
  const answer = await fetch(`api/${name}?${new URLSearchParams(query)}`, file ? { method: "POST", body: file } : {});
  const value = await answer.json().catch(() => ({}));
  if (answer.ok) return value;
  const busy = answer.status === 429 ? "; try again in a moment" : "";
  throw Error((typeof value.detail === "string" ? value.detail : `the server answered ${answer.status}`) + busy);
}
const say = (text, error = false) => {
  $("#about").textContent = text;
  $("#about").className = error ? "error" : "";
};
const address = (changes) => {
  const query = new URLSearchParams(location.search);
  for (const [key, value] of Object.entries(changes)) value === null || value === "" ? query.delete(key) : query.set(key, value);
  return `?${query}`;
};
const go = (changes) => {
  history.pushState(null, "", address(changes));
  render();
};
const link = (text, changes) => make("a", { textContent: text, href: address(changes) });
const time = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
const part = ({ start, end }) => (start === null && end === null ? "" : `${time(start ?? 0)}–${end === null ? "" : time(end)}`);
const fragment = ({ start, end }) => (start === null && end === null ? "" : `#t=${start ?? 0}${end === null ? "" : `,${end}`}`);
const nameOf = (hit) => hit.path.split("/").pop();

// What moves: the file if the browser plays it, or else some frames of it.
function player(hit, values) {
  const frames = () => make("img", { src: `api/clip/${hit.clip}?view=${hit.kind === "image" ? "still" : "moving"}`, alt: nameOf(hit) });
  if (hit.kind === "image" || !/\.(mp4|m4v|mov|webm)$/i.test(hit.path)) return frames();
  const video = make("video", { muted: true, loop: true, autoplay: true, playsInline: true, ...values });
  video.onerror = () => video.replaceWith(frames());
  video.src = `api/clip/${hit.clip}${fragment(hit)}`;
  return video;
}

function card(hit) {
  const still = make("a", { className: "still", href: address({ open: hit.clip }) });
  still.append(make("img", { src: `api/clip/${hit.clip}?view=still`, alt: hit.caption ?? nameOf(hit), loading: "lazy" }));
  const stop = () => still.querySelectorAll(":nth-child(n + 2)").forEach((element) => element.remove());
  still.onpointerenter = still.onfocus = () => still.children.length > 1 || still.append(player(hit));
  still.onpointerleave = still.onblur = stop;
  const about = make("div", {}, make("b", { textContent: hit.caption ?? nameOf(hit) }));
  const span = hit.span && hit.span[0] !== hit.start | hit.span[1] !== hit.end ? `neighbors fit too: ${hit.span.map(time).join("–")}` : "";
  for (const text of [[hit.caption && nameOf(hit), part(hit)].filter(Boolean).join(" · "), hit.note, span])
    if (text) about.append(make("small", { textContent: text }));
  for (const key of ["similarity", "match"])
    if (hit[key] !== null)
      about.append(make("small", { textContent: `${key} ${hit[key].toFixed(3)}` }), make("meter", { value: hit[key], title: key }));
  about.append(make("nav", {}, link("Open", { open: hit.clip }), link("Similar", { clip: hit.clip, text: null, offset: null })));
  return make("article", { className: "card" }, still, about);
}

async function showHits(query) {
  const k = Number(query.get("k") ?? 12), offset = Number(query.get("offset") ?? 0), number = ++shown;
  const wanted = new URLSearchParams({ k, offset });
  for (const key of ["text", "clip"]) if (query.get(key)) wanted.set(key, query.get(key));
  for (const filter of query.get("filter")?.split(";") ?? []) if (filter.trim()) wanted.append("filter", filter);
  const like = query.has("clip") ? `similar to clip ${query.get("clip")}` : upload ? `similar to ${upload.name}` : "";
  try {
    const found = await api("search", wanted, query.get("text") || query.has("clip") ? null : upload);
    if (number !== shown) return;
    const of = `${found.clips.toLocaleString()} clips`;
    const range = found.hits.length ? `${offset + 1} to ${offset + found.hits.length} of ${of}` : `none of ${of}`;
    say([range, like, found.note].filter(Boolean).join(" · "));
    $("#hits").replaceChildren(...found.hits.map(card));
    const more = offset + found.hits.length < found.clips && found.hits.length === k;
    const pages = [offset && link("← Previous", { offset: Math.max(0, offset - k) || null }), more && link("Next →", { offset: offset + k })];
    $("#pages").replaceChildren(...pages.filter(Boolean));
  } catch (error) {
    if (number !== shown) return;
    say(error.message, true);
    for (const part of ["#hits", "#pages"]) $(part).replaceChildren();
  }
}

// One clip, or an uploaded file, with questions and boxes.
async function show(hit, file = null) {
  current = file ? { query: {}, file } : { query: { clip: hit.clip }, file: null };
  const url = file && URL.createObjectURL(file), picture = file ? file.type.startsWith("image/") : false;
  const element = !file ? player(hit, { controls: true }) : make(picture ? "img" : "video", { src: url, controls: true, muted: true, loop: true, autoplay: true });
  media.firstElementChild === box ? media.prepend(element) : media.firstElementChild.replaceWith(element);
  opened.querySelector("h2").textContent = file ? file.name : hit.caption ?? nameOf(hit);
  const columns = hit ? Object.entries(hit.columns).map(([name, value]) => `${name}: ${value}`) : [];
  $("#facts").textContent = hit ? [[hit.path, part(hit)].filter(Boolean).join(" · "), ...columns].join("\n") : "";
  for (const list of opened.querySelectorAll("dl")) list.replaceChildren();
  draw([0, 0, 1, 1]);
  if (!opened.open) opened.showModal();
}
function draw(place) {
  region = place.map((value) => value.toFixed(3)).join(",");
  ["left", "top", "width", "height"].forEach((side, i) => (box.style[side] = `${100 * place[i]}%`));
}
let start = null;
const at = (event) => {
  const area = media.getBoundingClientRect(), inside = (value) => Math.min(1, Math.max(0, value));
  return [inside((event.clientX - area.left) / area.width), inside((event.clientY - area.top) / area.height)];
};
media.onpointerdown = (event) => {
  if (!offers.includes("entities") || event.clientY > media.getBoundingClientRect().bottom - 40) return; // the controls
  event.preventDefault();
  media.setPointerCapture(event.pointerId);
  start = at(event);
};
media.onpointermove = media.onpointerup = (event) => {
  if (!start) return;
  const end = at(event), size = [0, 1].map((i) => Math.abs(start[i] - end[i]));
  draw(Math.min(...size) > 0.02 ? [0, 1].map((i) => Math.min(start[i], end[i])).concat(size) : [0, 0, 1, 1]);
  if (event.type === "pointerup") start = null;
};
for (const name of ["ask", "entities"])
  $(`#${name} form`).onsubmit = async (event) => {
    event.preventDefault();
    const list = $(`#${name} dl`), form = Object.fromEntries(new FormData(event.target));
    const query = { ...current.query, k: 5, ...(name === "ask" ? form : { box: region, ...(form.text ? form : {}) }) };
    list.replaceChildren(make("dt", { className: "head", textContent: "…" }));
    try {
      const { note, answers, entities } = await api(name, query, current.file);
      list.replaceChildren(...(note ? [make("dt", { className: "head", textContent: note })] : []), ...(answers ?? entities).flatMap(({ text, probability }) => [
        make("dt", { textContent: text }), make("meter", { value: probability }), make("dd", { textContent: `${(100 * probability).toFixed(1)} %` })]));
    } catch (error) {
      list.replaceChildren(make("dt", { className: "head", textContent: error.message }));
    }
  };

async function render() {
  const query = new URLSearchParams(location.search), open = query.get("open");
  for (const name of ["text", "filter"]) search.elements[name].value = query.get(name) ?? "";
  search.elements.k.value = query.get("k") ?? 12;
  document.title = query.get("text") || "Video search";
  $("#examples").hidden = query.has("text") || query.has("clip");
  query.delete("open");
  if (offers.includes("search") && render.last !== `${query}${upload?.name}`) await showHits(query);
  render.last = `${query}${upload?.name}`;
  if (open === null) return opened.open && opened.close();
  try {
    show((await api("search", { k: 1, offset: open })).hits[0] ?? (() => { throw Error("there is no such clip"); })());
  } catch (error) {
    say(error.message, true);
  }
}
document.onclick = (event) => {
  const anchor = event.target.closest?.('a[href^="?"]');
  if (!anchor || event.metaKey || event.ctrlKey || event.button) return;
  event.preventDefault();
  history.pushState(null, "", anchor.href);
  render();
  if (!anchor.href.includes("open=")) scrollTo(0, 0);
};
search.onsubmit = (event) => {
  event.preventDefault();
  upload = null;
  go({ ...Object.fromEntries(new FormData(search)), offset: null, clip: null, open: null });
};
search.elements.k.onchange = () => search.requestSubmit();
$("#close").onclick = () => opened.close();
opened.onclose = () => {
  media.querySelectorAll("video").forEach((video) => video.pause());
  if (new URLSearchParams(location.search).has("open")) go({ open: null });
};
$("#upload").onchange = async ({ target }) => {
  [upload] = target.files;
  target.value = "";
  history.pushState(null, "", address({ text: null, clip: null, offset: null, open: null }));
  await render(); // it closes what was open
  if (offers.includes("ask") || offers.includes("entities")) show(null, upload);
};
addEventListener("popstate", render);

const about = await api("health").catch((error) => (say(error.message, true), { offers: [], examples: [] }));
offers = about.offers;
for (const name of ["search", "ask", "entities"]) $(`#${name}`).hidden = !offers.includes(name);
$("#entities input").hidden = !offers.includes("text");
box.hidden = !offers.includes("entities");
media.classList.toggle("boxed", !box.hidden);
if (about.examples.length) $("#examples").append("Try ", ...about.examples.map((text) => link(text, { text })));
render();
