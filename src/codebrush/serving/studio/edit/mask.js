// The canvas of the mask painter, over the picture that its value names. What is painted goes, as a PNG whose alpha is
// the mask, into the text field #mask-data, with the picture's file that it is of. Strokes have soft edges; the server
// decides what they are nearer to. Gradio makes the canvas anew when its task is chosen again: the field has kept what
// was painted.
const shown = element.querySelector(".cb-mask");
const canvas = shown.querySelector("canvas");
const picture = shown.querySelector("img");
const cursor = shown.querySelector(".cb-cursor");
const size = shown.querySelector("input[type=range]");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const undone = [];
let erasing = false, last = null, place = [0.5, 0.5], of = "";

const field = () => document.querySelector("#mask-data textarea, #mask-data input");
const send = () => {
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  let empty = true;
  for (let at = 3; at < pixels.length && empty; at += 4) empty = pixels[at] === 0;
  const text = field(), said = empty ? "" : canvas.toDataURL("image/png").replace(";", `;of=${of};`);
  if (!text || text.value === said) return;
  text.value = said;
  text.dispatchEvent(new Event("input", { bubbles: true }));
};
const keep = () => {
  undone.push(pen.getImageData(0, 0, canvas.width, canvas.height));
  if (undone.length > 20) undone.shift();
};
const width = () => (size.value / 100) * Math.min(canvas.width, canvas.height);
const at = (event) => {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
const stroke = (from, to) => {
  pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
  pen.strokeStyle = "#0d9488";
  pen.lineWidth = width();
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(from[0] * canvas.width, from[1] * canvas.height);
  pen.lineTo(to[0] * canvas.width + 0.01, to[1] * canvas.height);
  pen.stroke();
};
const point = (to) => {
  place = to;
  const wide = (100 * width()) / canvas.width;
  Object.assign(cursor.style, { left: `${100 * to[0]}%`, top: `${100 * to[1]}%`, width: `${wide}%` });
};
const begin = (value) => {
  const source = value?.picture;
  of = value?.file ?? "";
  const kept = () => source && field()?.value.includes(`;of=${of};`);
  shown.hidden = !source;
  undone.length = 0;
  canvas.width = canvas.height = 1;
  if (!kept()) send();
  if (!source) return;
  picture.onload = () => {
    canvas.width = picture.naturalWidth;
    canvas.height = picture.naturalHeight;
    point([0.5, 0.5]);
    if (!kept()) return send();
    const strokes = new Image();
    strokes.onload = () => {
      pen.globalCompositeOperation = "source-over";
      if (kept()) pen.drawImage(strokes, 0, 0);
      send();
    };
    strokes.src = field().value;
  };
  picture.src = source;
};

canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  keep();
  last = at(event);
  stroke(last, last);
});
canvas.addEventListener("pointermove", (event) => {
  point(at(event));
  if (!last) return;
  for (const each of event.getCoalescedEvents?.() ?? [event]) {
    const next = at(each);
    stroke(last, next);
    last = next;
  }
});
for (const kind of ["pointerup", "pointercancel"])
  canvas.addEventListener(kind, () => {
    if (!last) return;
    last = null;
    send();
  });
const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  const way = arrows[event.key];
  if (way) {
    const step = [width() / 2 / canvas.width, width() / 2 / canvas.height];
    const next = place.map((value, axis) => Math.min(1, Math.max(0, value + way[axis] * step[axis])));
    if (event.shiftKey) { keep(); stroke(place, next); send(); }
    point(next);
  } else if (event.key === " ") {
    keep(); stroke(place, place); send();
  } else return;
  event.preventDefault();
});
shown.addEventListener("click", (event) => {
  const tool = event.target.closest("[data-tool]")?.dataset.tool;
  if (!tool) return;
  if (tool === "brush" || tool === "eraser") {
    erasing = tool === "eraser";
    shown.querySelectorAll("[aria-pressed]").forEach((each) => each.setAttribute("aria-pressed", each.dataset.tool === tool));
    return;
  }
  if (tool === "undo") {
    const before = undone.pop();
    if (before) pen.putImageData(before, 0, 0);
  } else {
    keep();
    pen.globalCompositeOperation = tool === "clear" ? "copy" : "xor";
    pen.fillStyle = tool === "clear" ? "transparent" : "#0d9488";
    pen.fillRect(0, 0, canvas.width, canvas.height);
  }
  send();
});
size.addEventListener("input", () => point(place));
watch("value", () => begin(props.value));
begin(props.value);
