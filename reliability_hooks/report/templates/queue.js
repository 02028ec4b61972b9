// The review queue: filter, sort, and a list of which only what can be seen is built.
const ROW = 76; // height of a row in pixels, as in the style
const BESIDE = 4; // rows built above and below what can be seen
const ORDERS = {
  r: byDoubt,
  "-r": (a, b) => (b.r ?? -1) - (a.r ?? -1) || a.id - b.id,
  ood: (a, b) => (a.ood?.p ?? 2) - (b.ood?.p ?? 2) || byDoubt(a, b),
  gap: (a, b) => gap(b) - gap(a) || byDoubt(a, b),
  name: (a, b) => a.name.localeCompare(b.name) || byDoubt(a, b),
  image: (a, b) => a.image - b.image || byDoubt(a, b),
};
const FILTERS = ["sort", "class", "condition", "seen", "correct", "maps", "from", "to", "search"];
const NONE = "none stands out";
const $ = (id) => document.getElementById(id);
let queue = [];
let verdict = "";

const gap = (o) => (o.r === null || o.score === null ? 2 : o.score - o.r);
const seenUnder = (o) => page.images[o.image].seen;

/** The objects that pass all filters, in order. */
function selected() {
  const value = Object.fromEntries(FILTERS.map((id) => [id, $(id).value]));
  const words = value.search.toLowerCase();
  const low = parseFloat(value.from);
  const high = parseFloat(value.to);
  return objects.filter((o) =>
    (!verdict || o.verdict === verdict) &&
    (!value.class || o.name === value.class) &&
    (!value.condition || (o.condition || NONE) === value.condition) &&
    (!value.seen || seenUnder(o) === value.seen) &&
    (!value.correct || o.correct === (value.correct === "right")) &&
    (!value.maps || Boolean(o.maps)) &&
    (Number.isNaN(low) || (o.r ?? -1) >= low) &&
    (Number.isNaN(high) || (o.r ?? -1) <= high) &&
    (!words || o.name.toLowerCase().includes(words) || page.images[o.image].name.toLowerCase().includes(words))
  ).sort(ORDERS[value.sort]);
}

function applyFilters() {
  queue = selected();
  $("list").replaceChildren();
  $("list").style.setProperty("--all", `${ROW * queue.length}px`);
  $("list").scrollTop = 0;
  build();
  const active = FILTERS.filter((id) => id !== "sort" && $(id).value).length;
  $("filtered").textContent = active ? `(${active} active)` : "";
  const all = objects.length;
  $("count").textContent = !all ? "Nothing was detected on these images." : !queue.length ? "No object passes the filters." :
    `${queue.length === all ? all : `${queue.length} of ${all}`} object${all === 1 ? "" : "s"}, ${$("sort").selectedOptions[0].textContent}`;
  for (const b of document.querySelectorAll("[data-verdict]")) b.setAttribute("aria-pressed", b.dataset.verdict === verdict);
}

/** The rows in sight; those that are there already stay. */
function build() {
  const list = $("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - BESIDE);
  const last = first + Math.ceil(list.clientHeight / ROW) + 2 * BESIDE;
  const old = new Map([...list.children].map((r) => [r.id, r]));
  const rows = queue.slice(first, last).map((o, k) => old.get(`row-${o.id}`) ?? row(o, first + k));
  list.replaceChildren(...rows);
}

function row(o, place) {
  const image = page.images[o.image];
  const canvas = h("canvas", { width: 112, height: 112, "aria-hidden": "true" });
  setTimeout(() => thumbnail(o, canvas), 50); // not of those that are only scrolled past
  return h("li", {
    id: `row-${o.id}`, role: "option", "aria-selected": o === chosen, "aria-posinset": place + 1, "aria-setsize": queue.length,
    "aria-label": inWords(o), style: { top: `${ROW * place}px` }, on: { click: () => choose(o, "queue") },
  },
    canvas,
    h("span.what", {}, h("b", {}, o.name), h("small", {}, image.name + (image.seen ? `, ${image.seen}` : "")),
      o.condition ? h("small.condition", { title: o.condition }, o.condition) : null),
    h("span.how", {}, h("b", {}, two(o.r)), gauge(o),
      h("span.marks", {}, o.correct === undefined ? null : h("small.truth", {}, o.correct ? "right" : "wrong"), chip(o.verdict))));
}

/** The object with a little of its surroundings. */
async function thumbnail(o, canvas) {
  if (o.box.includes(null) || !canvas.isConnected) return;
  const picture = await pictureOf(o.image).catch(() => null);
  if (!picture || !canvas.isConnected) return;
  const scale = picture.naturalWidth / page.images[o.image].width;
  const [x1, y1, x2, y2] = o.box.map((v) => v * scale);
  const side = Math.min(1.3 * Math.max(x2 - x1, y2 - y1, 24), picture.naturalWidth, picture.naturalHeight);
  const inside = (middle, size) => Math.min(Math.max(middle - side / 2, 0), size - side);
  canvas.getContext("2d").drawImage(picture, inside((x1 + x2) / 2, picture.naturalWidth),
    inside((y1 + y2) / 2, picture.naturalHeight), side, side, 0, 0, canvas.width, canvas.height);
}

function markRow(o, scroll) {
  for (const old of $("list").querySelectorAll("[aria-selected=true]")) old.setAttribute("aria-selected", "false");
  const place = queue.indexOf(o);
  $("place").textContent = !queue.length ? "" : place < 0 ? `– of ${queue.length}` : `${place + 1} of ${queue.length}`;
  $("previous").disabled = place <= 0;
  $("next").disabled = !queue.length || place === queue.length - 1;
  const list = $("list");
  if (place < 0) return list.removeAttribute("aria-activedescendant");
  if (scroll) {
    const [top, room] = [ROW * place, list.clientHeight - ROW];
    list.scrollTop = Math.min(Math.max(list.scrollTop, top - room), top);
    build();
  }
  $(`row-${o.id}`)?.setAttribute("aria-selected", "true");
  list.setAttribute("aria-activedescendant", `row-${o.id}`);
}

/** Choices that these data offer; a filter without a choice is not shown. */
function fillFilters() {
  const counts = (values) => {
    const found = new Map();
    for (const v of values) found.set(v, (found.get(v) ?? 0) + 1);
    return [...found].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
  };
  const offer = (id, values) => {
    const found = counts(values);
    for (const [value, n] of found) $(id).append(h("option", { value }, `${value} (${n})`));
    $(id).parentElement.hidden = found.length < 2;
  };
  offer("class", objects.map((o) => o.name));
  offer("condition", objects.filter((o) => o.condition !== undefined).map((o) => o.condition || NONE));
  offer("seen", objects.map(seenUnder).filter(Boolean));
  $("correct").parentElement.hidden = !objects.some((o) => o.correct !== undefined);
  $("maps").parentElement.hidden = !objects.some((o) => o.maps);
  if (!objects.some((o) => o.ood)) $("sort").querySelector("[value=ood]").remove();
}
