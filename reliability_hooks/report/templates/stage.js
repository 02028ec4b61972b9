// The picture with its boxes and masks as SVG: sharp at any size, each of them can be clicked and reached by keys.
let shownImage = -1;
let zoomed = false;
let outlined = true;
let layer = null;

/** Draw an image anew; small objects lie on top, so that each can be clicked. */
async function showImage(k) {
  if (k === shownImage) return;
  shownImage = k;
  const { width, height, name, seen } = page.images[k];
  const found = ofImage[k];
  const least = found.length ? `, the least reliable: ${inWords(found[0])}` : "";
  const picture = s("image", { width, height, role: "img", "aria-label": `${name}: ${found.length} detections${least}` });
  const svg = s("svg", { id: "svg", viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Picture with its detections" },
    picture, s("image", { id: "layer", preserveAspectRatio: "none" }), s("g", { id: "marks" }, ...[...found].sort((a, b) => area(b) - area(a)).map(mark)));
  svg.classList.toggle("bare", !outlined);
  $("view").replaceChildren(svg);
  $("view").style.setProperty("--ratio", width / height);
  $("image-name").replaceChildren(h("b", {}, name), ` ${seen ? seen + ", " : ""}${found.length} detection${found.length === 1 ? "" : "s"}, image ${k + 1} of ${page.images.length}`);
  $("others").replaceChildren(...found.map((o) => h("button", {
    "data-object": o.id, "aria-label": inWords(o), style: { borderLeftColor: colour(o.r) }, on: { click: () => choose(o, "stage") },
  }, `${o.name} ${two(o.r)}`)));
  scaleSoon();
  const url = await urlOf(`picture-${k}`, "image/jpeg");
  if (shownImage === k) picture.setAttribute("href", url);
}

const area = (o) => Math.abs((o.box[2] - o.box[0]) * (o.box[3] - o.box[1]));

function mark(o) {
  if (o.box.includes(null)) return null;
  const [x1, y1, x2, y2] = o.box;
  const box = { x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1) };
  const style = o.r === null ? "unknown" : o.verdict === "reject" ? "reject" : "known";
  const select = () => choose(o, "stage");
  return s("g", {
    id: `mark-${o.id}`, class: `mark ${style}`, tabindex: 0, role: "button", "aria-label": inWords(o), style: { color: colour(o.r) },
    on: { click: select, keydown: (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); select(); } } },
  },
    s("title", {}, inWords(o)),
    o.outline ? s("path", { class: "mask", d: o.outline, "fill-rule": "evenodd" }) : null,
    s("rect", { class: "halo", ...box }), s("rect", { class: "box", ...box }),
    s("text", { x: box.x, y: box.y, class: "caption" }, `${o.name} ${two(o.r)}`));
}

let scaling = 0;

/** Once before the next frame, however much changes until then: each reading of a size costs a layout. */
function scaleSoon() {
  scaling ||= requestAnimationFrame(() => { scaling = 0; scaleMarks(); });
}

/** Text and lines keep their size on the screen, whatever that of the picture. */
function scaleMarks() {
  const svg = $("svg");
  const width = svg?.clientWidth;
  if (!width) return;
  const view = svg.viewBox.baseVal;
  const unit = view.width / width;
  svg.style.setProperty("--unit", `${unit}px`);
  for (const text of svg.querySelectorAll(".caption")) {
    const { x, y } = text.previousElementSibling;
    const top = y.baseVal.value - 5 * unit;
    text.setAttribute("x", Math.max(view.x + 4 * unit, Math.min(x.baseVal.value, view.x + view.width - 150 * unit)));
    text.setAttribute("y", Math.max(top, view.y + 15 * unit));
  }
}

function markChosen(o) {
  for (const old of document.querySelectorAll(".mark.chosen")) old.classList.remove("chosen");
  const mine = o && $(`mark-${o.id}`);
  if (mine) {
    mine.classList.add("chosen");
    if (!mine.contains(document.activeElement)) mine.parentElement.append(mine); // on top; moving it would take the focus
  }
  for (const b of $("others").children) b.setAttribute("aria-pressed", o !== null && b.dataset.object === String(o.id));
  setZoom(zoomed, o);
  showLayer(null);
}

function setZoom(on, o) {
  zoomed = on;
  $("zoom").setAttribute("aria-pressed", on);
  const svg = $("svg");
  if (!svg) return;
  const { width, height } = page.images[shownImage];
  let view = [0, 0, width, height];
  if (on && o && !o.box.includes(null)) {
    const [x1, y1, x2, y2] = o.box;
    const share = Math.min(1, Math.max(1.8 * Math.abs(x2 - x1) / width, 1.8 * Math.abs(y2 - y1) / height, 0.08));
    const [w, t] = [width * share, height * share];
    view = [Math.min(Math.max((x1 + x2 - w) / 2, 0), width - w), Math.min(Math.max((y1 + y2 - t) / 2, 0), height - t), w, t];
  }
  svg.setAttribute("viewBox", view.map((v) => v.toFixed(2)).join(" "));
  scaleSoon();
}

function setOutlined(on) {
  outlined = on;
  $("masks").setAttribute("aria-pressed", on);
  $("svg")?.classList.toggle("bare", !on);
}

/** Lay an explanation map over the picture, or take it off. */
async function showLayer(map) {
  layer = map;
  const image = $("layer");
  for (const b of document.querySelectorAll("[data-map]")) b.setAttribute("aria-pressed", map !== null && b.dataset.map === String(map.id));
  for (const p of document.querySelectorAll("[data-says]")) p.hidden = map === null || p.dataset.says !== String(map.id);
  $("svg")?.classList.toggle("mapped", map !== null);
  if (!image) return;
  if (!map) return image.removeAttribute("href");
  if (!zoomed) setZoom(true, chosen); // a map of a small object says nothing from afar
  const [x1, y1, x2, y2] = map.box;
  for (const [key, value] of Object.entries({ x: x1, y: y1, width: x2 - x1, height: y2 - y1 })) image.setAttribute(key, value);
  const url = await urlOf(`map-${map.id}`, "image/png");
  if (layer === map) image.setAttribute("href", url);
}
