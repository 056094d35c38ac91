// What the page and its dialog share: elements, requests, and the state in the address.
export const $ = (selector) => document.querySelector(selector);

export function make(tag, values = {}, ...children) {
  const element = Object.assign(document.createElement(tag), values);
  element.append(...children);
  return element;
}

export async function api(name, query = {}, file = null) {
  const options = file ? { method: "POST", body: file } : {};
  const answer = await fetch(`api/${name}?${new URLSearchParams(query)}`, options);
  const value = await answer.json().catch(() => ({}));
  if (answer.ok) return value;
  const busy = answer.status === 429 ? "; try again in a moment" : "";
  const reason = typeof value.detail === "string" ? value.detail : `the server answered ${answer.status}`;
  throw Error(reason + busy);
}

// The address with changes; null and "" remove a part of it.
export function address(changes) {
  const query = new URLSearchParams(location.search);
  for (const [key, value] of Object.entries(changes)) {
    if (value === null || value === "") query.delete(key);
    else query.set(key, value);
  }
  return `?${query}`;
}

// The identity changes with the file, so that a browser shows no picture of an earlier one.
export const clipAddress = (hit, view) => `api/clip/${hit.key}?${new URLSearchParams({ view, of: hit.identity })}`;

export const nameOf = (hit) => hit.path.split("/").pop();

export function time(seconds) {
  const rounded = Math.round(seconds * 10) / 10;
  const rest = rounded % 60;
  const shown = Number.isInteger(rest) ? String(rest).padStart(2, "0") : rest.toFixed(1).padStart(4, "0");
  return `${Math.floor(rounded / 60)}:${shown}`;
}

// The part of the file that a clip is, if it is not the whole.
export function part({ start, end }) {
  if (start === null && end === null) return "";
  return `${time(start ?? 0)}–${end === null ? "" : time(end)}`;
}

export const warn = (element, text) => {
  element.textContent = text ?? "";
  element.hidden = !text;
};

const gone = (text) => make("p", { className: "gone", textContent: text });

// Why the server does not send a picture.
async function reasonOf(url) {
  const answer = await fetch(url).catch(() => null);
  const value = answer && !answer.ok ? await answer.json().catch(() => ({})) : {};
  return typeof value.detail === "string" ? value.detail : "no picture of this clip";
}

// A picture of a clip, or the reason why there is none. onReady(width, height) is called when its shape is known.
export function picture(hit, view, onReady = () => {}) {
  const url = clipAddress(hit, view);
  const image = make("img", { alt: hit.caption ?? nameOf(hit) });
  image.onload = () => onReady(image.naturalWidth, image.naturalHeight);
  image.onerror = async () => image.replaceWith(gone(await reasonOf(url)));
  image.src = url;
  return image;
}

// What moves: the file if the browser plays it, or else some frames of it.
export function player(hit, values, onReady = () => {}) {
  const still = () => picture(hit, hit.kind === "image" ? "still" : "moving", onReady);
  if (hit.kind === "image" || !/\.(mp4|m4v|mov|webm)$/i.test(hit.path)) return still();

  const video = make("video", { muted: true, loop: true, autoplay: true, playsInline: true, ...values });
  video.onloadedmetadata = () => onReady(video.videoWidth, video.videoHeight);
  video.onerror = () => video.replaceWith(still());
  const whole = hit.start === null && hit.end === null;
  const fragment = whole ? "" : `#t=${hit.start ?? 0}${hit.end === null ? "" : `,${hit.end}`}`;
  video.src = clipAddress(hit, "file") + fragment;
  return video;
}
