// Drags a box on the frame; its place is sent as fractions of the frame: left, top, width, height.
let start = null;
let box = null;

const place = (event) => {
  const area = element.querySelector(".frame").getBoundingClientRect();
  const inside = (value) => Math.min(1, Math.max(0, value));
  return [inside((event.clientX - area.left) / area.width), inside((event.clientY - area.top) / area.height)];
};

element.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.target.closest(".frame")) return;
  event.preventDefault();
  start = place(event);
});

window.addEventListener("pointermove", (event) => {
  const drawn = element.querySelector(".box");
  if (!start || !drawn) return;
  const end = place(event);
  box = [0, 1].map((i) => Math.min(start[i], end[i])).concat([0, 1].map((i) => Math.abs(start[i] - end[i])));
  ["left", "top", "width", "height"].forEach((side, i) => (drawn.style[side] = `${100 * box[i]}%`));
});

window.addEventListener("pointerup", () => {
  const dragged = start && box && box[2] > 0.02 && box[3] > 0.02;
  if (start) trigger("select", { box: dragged ? box : null }); // a click: the whole frame
  start = box = null;
});
