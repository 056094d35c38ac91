// The page of `alpro serve`. Its state is the query of its address: text, words, where, k, offset, clip (similar to it), file, open.
import { hideClip, setOffers, showClip, showFile } from "./clip.js";
import { $, address, api, make, nameOf, part, picture, player, time, warn } from "./parts.js";

const search = $("#search");
const opened = $("#opened");
let offers = [];
let hits = []; // of the page
const uploads = new Map(); // files that were chosen, by name; a reload forgets them
let request = 0; // the number of the last search: an earlier one that answers later is not shown

const say = (text, error = false) => {
  $("#about").textContent = text;
  $("#about").className = error ? "error" : "";
};
const link = (text, changes) => make("a", { textContent: text, href: address(changes) });
const uploadOf = (query) => uploads.get(query.get("file"));
const ofPage = () => Number(new URLSearchParams(location.search).get("offset") ?? 0);

function go(changes) {
  history.pushState(null, "", address(changes));
  render();
}

// Hits

function scores(hit) {
  const lines = [];
  for (const key of ["similarity", "match"]) {
    if (hit[key] === null) continue;
    const value = hit[key].toFixed(3);
    const meter = make("meter", { value: hit[key], title: `${key} ${value}` });
    lines.push(make("div", { className: "score" }, meter, make("span", { textContent: `${key} ${value}` })));
  }
  return lines;
}

function card(hit) {
  const still = make("a", { className: "still", href: address({ open: hit.key }) });
  const image = picture(hit, "still");
  image.loading = "lazy";
  still.append(image);
  const lasts = part(hit) || (hit.duration === null ? "" : time(Math.max(1, Math.round(hit.duration))));
  if (lasts) still.append(make("span", { className: "time", textContent: lasts }));

  // A preview while the pointer is on the card.
  let preview = null;
  still.onpointerenter = still.onfocus = () => {
    if (preview || hit.note) return;
    preview = player(hit);
    still.append(preview);
  };
  still.onpointerleave = still.onblur = () => {
    preview = null;
    for (const element of [...still.children].slice(1)) if (element.className !== "time") element.remove();
  };

  const about = make("div", {}, make("p", { textContent: hit.caption ?? nameOf(hit), title: hit.caption ?? "" }));
  if (hit.caption) about.append(make("small", { className: "file", textContent: nameOf(hit) }));
  if (hit.note) about.append(make("small", { className: "note", textContent: hit.note }));
  about.append(...scores(hit));
  about.append(make("div", { className: "links" }, link("Similar", { clip: hit.key, text: null, file: null, offset: null })));
  return make("article", { className: "card" }, still, about);
}

function empty(query) {
  const isFiltered = query.has("where") || query.has("words");
  const ways = [];
  if (isFiltered) ways.push(link("Clear the filter", { where: null, words: null, offset: null }), " · ");
  if (query.get("offset")) ways.push(link("Back to the first results", { offset: null }), " · ");
  ways.push(make("a", { textContent: "All clips", href: "?" }));
  const line = make("p", { textContent: isFiltered ? "No clip fits this filter." : "No results." });
  return make("div", { className: "empty" }, line, make("p", {}, ...ways));
}

// Conditions to click: one that is chosen is removed, any other is added.
const READY = ["kind = 'video'", "kind = 'image'", "duration < 10", "duration >= 60", "caption IS NOT NULL"];
function showConditions(query) {
  const chosen = (query.get("where") ?? "").split(" AND ").filter(Boolean);
  const chips = READY.map((condition) => {
    const others = chosen.filter((other) => other !== condition);
    const where = (chosen.includes(condition) ? others : [...chosen, condition]).join(" AND ");
    const chip = make("a", { href: address({ where, offset: null, open: null }), textContent: condition });
    if (chosen.includes(condition)) chip.setAttribute("aria-current", "true");
    return chip;
  });
  $("#ready").replaceChildren(...chips);

  const removable = [];
  for (const name of ["where", "words"]) {
    if (!query.get(name)) continue;
    const changes = { [name]: null, offset: null };
    removable.push(make("a", { href: address(changes), textContent: `${query.get(name)} ×`, title: `Remove this condition` }));
  }
  $("#conditions").replaceChildren(...removable);
}

// What the hits are similar to.
async function showLike(query) {
  const like = $("#like");
  const id = query.get("clip");
  const upload = uploadOf(query);
  like.hidden = !id && !upload;
  if (like.hidden) return like.replaceChildren();
  if (id) {
    const found = await clipById(id).catch(() => null);
    if (query.get("clip") !== id || !found) return like.replaceChildren();
    const name = make("span", { textContent: `Similar to ${nameOf(found)}` });
    return like.replaceChildren(picture(found, "still"), name, link("Show all", { clip: null, offset: null }));
  }
  const name = make("span", { textContent: `Similar to your file ${upload.name}` });
  const open = make("button", { textContent: "Open it", onclick: () => showFile(upload) });
  const asks = offers.includes("ask") || offers.includes("entities");
  like.replaceChildren(name, ...(asks ? [open] : []), link("Show all", { file: null, offset: null }));
}

async function showHits(query) {
  const k = Number(query.get("k") ?? 12);
  const offset = Number(query.get("offset") ?? 0);
  const number = ++request;
  const wanted = new URLSearchParams({ k, offset });
  if (query.get("text")) wanted.set("text", query.get("text"));
  for (const name of ["clip", "where", "words"]) if (query.get(name)) wanted.set(name, query.get(name));
  const file = uploadOf(query);
  const forgotten = query.has("file") && !file ? `${query.get("file")}: choose this file again` : "";
  showLike(query);
  showConditions(query);
  try {
    const result = await api("search", wanted, file);
    if (number !== request) return;
    hits = result.hits;
    const all = `${result.clips.toLocaleString()} clips`;
    say(hits.length ? `${offset + 1} to ${offset + hits.length} of ${all}` : "");
    warn($("#warning"), forgotten || result.note);
    $("#hits").replaceChildren(...(hits.length ? hits.map(card) : [empty(query)]));

    const pages = [];
    if (offset) pages.push(link("← Previous", { offset: Math.max(0, offset - k) || null }));
    if (offset + hits.length < result.clips && hits.length === k) pages.push(link("Next →", { offset: offset + k }));
    $("#pages").replaceChildren(...pages);
  } catch (error) {
    if (number !== request) return;
    // The last results stay, with the reason why there are no others.
    say("");
    if (file) {
      uploads.delete(file.name);
      history.replaceState(null, "", address({ file: null }));
      $("#like").hidden = true;
    }
    warn($("#warning"), file ? `${file.name}: ${error.message}` : error.message);
  }
}

// The dialog, which an entry of the history opens

async function clipById(id) {
  const shown = hits.find((hit) => hit.key === id);
  if (shown) return shown;
  const [hit] = (await api("search", { k: 1, where: `key = '${id.replaceAll("'", "''")}'` })).hits;
  if (!hit) throw Error("there is no such clip in the index");
  return hit;
}

function closeClip() {
  if (history.state?.opened) return history.back(); // so that Back does not open it again
  history.replaceState(null, "", address({ open: null }));
  render();
}

function move(step) {
  const id = new URLSearchParams(location.search).get("open");
  const place = hits.findIndex((hit) => hit.key === id);
  const next = place < 0 ? null : hits[place + step];
  if (!next) return;
  history.replaceState(history.state, "", address({ open: next.key }));
  render();
}

async function render() {
  const query = new URLSearchParams(location.search);
  const open = query.get("open");
  for (const name of ["text", "words", "where"]) search.elements[name].value = query.get(name) ?? "";
  search.elements.k.value = query.get("k") ?? 12;
  document.title = query.get("text") || "Video search";

  // Before the search is awaited: whoever opens the uploaded file meanwhile keeps it open.
  if (open === null) hideClip();

  query.delete("open");
  const state = `${query} ${uploadOf(query)?.lastModified}`;
  if (offers.includes("search") && render.last !== state) {
    render.last = state;
    await showHits(query);
  }
  if (open === null) return;
  if (open !== new URLSearchParams(location.search).get("open")) return; // another address by now
  try {
    showClip(await clipById(open), hits, ofPage());
  } catch (error) {
    hideClip();
    say(error.message, true);
  }
}

document.addEventListener("click", (event) => {
  const anchor = event.target.closest?.('a[href^="?"]');
  if (!anchor || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
  event.preventDefault();
  const opens = new URL(anchor.href).searchParams.has("open");
  history.pushState(opens ? { opened: true } : null, "", anchor.href);
  render();
  if (!opens) scrollTo(0, 0);
});
search.onsubmit = (event) => {
  event.preventDefault();
  go({ ...Object.fromEntries(new FormData(search)), offset: null, clip: null, file: null, open: null });
};
search.elements.k.onchange = () => search.requestSubmit();

$("#close").onclick = () => leave();
$("#before").onclick = () => move(-1);
$("#after").onclick = () => move(1);
function leave() {
  if (new URLSearchParams(location.search).has("open")) closeClip();
  else hideClip(); // an uploaded file has no address
}
opened.oncancel = (event) => {
  event.preventDefault();
  leave();
};
opened.onclose = () => {
  if (new URLSearchParams(location.search).has("open")) closeClip(); // a browser closed it by itself
};
// A click that begins and ends outside; a drag out of the dialog does not close it.
let outside = false;
opened.onpointerdown = (event) => (outside = event.target === opened);
opened.onclick = (event) => {
  if (outside && event.target === opened) leave();
};
addEventListener(
  "keydown",
  (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches?.("input, select, textarea")) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (opened.open && step) {
      event.preventDefault();
      event.stopPropagation(); // the video would jump
      move(step);
    } else if (!opened.open && event.key === "/") {
      event.preventDefault();
      search.elements.text.focus();
    }
  },
  true,
);

$("#upload").onchange = async ({ target }) => {
  const [upload] = target.files;
  target.value = "";
  if (!upload) return;
  uploads.set(upload.name, upload);
  history.pushState(null, "", address({ file: upload.name, text: null, clip: null, offset: null, open: null }));
  await render(); // it closes what was open
  if (!offers.includes("search")) showFile(upload);
};
addEventListener("popstate", render);

const about = await api("health").catch((error) => (say(error.message, true), { offers: [], columns: [] }));
offers = about.offers;
setOffers(offers);
search.hidden = !offers.includes("search");
if (search.hidden) $("header").append($("#upload").parentElement); // questions about files alone
$("#what").textContent = about.index;
$("#columns").textContent = about.columns.join(", ");
render();
