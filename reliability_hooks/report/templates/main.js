// What is chosen, and what keys and buttons do.
let chosen = null;

/** Show an object everywhere; `from` is where it was chosen. */
function choose(o, from) {
  chosen = o;
  if (o) showImage(o.image);
  markRow(o, from !== "queue");
  showDetail(o);
  markChosen(o);
  if (o) history.replaceState(null, "", `#${o.id}`);
  if (from === "queue" && narrow.matches) $("stage").scrollIntoView({ behavior: "smooth" });
}

const narrow = matchMedia("(max-width: 700px)");

function step(by) {
  const at = queue.indexOf(chosen);
  const to = at < 0 ? 0 : Math.min(Math.max(at + by, 0), queue.length - 1);
  if (queue[to]) choose(queue[to], "keys");
}

function stepImage(by) {
  const k = Math.min(Math.max(shownImage + by, 0), page.images.length - 1);
  if (k === shownImage) return;
  showImage(k);
  choose(ofImage[k][0] ?? null, "keys");
}

const KEYS = {
  j: () => step(1), k: () => step(-1), ArrowLeft: () => stepImage(-1), ArrowRight: () => stepImage(1),
  z: () => setZoom(!zoomed, chosen), m: () => setOutlined(!outlined), "?": () => $("help").showModal(),
  "/": () => { $("filters").open = true; $("search").focus(); },
};

function onKey(e) {
  if (e.ctrlKey || e.metaKey || e.altKey || $("review").hidden || $("help").open) return;
  if (e.target.matches("input, select, textarea")) return e.key === "Escape" ? e.target.blur() : undefined;
  const inList = e.target.id === "list" && { ArrowDown: KEYS.j, ArrowUp: KEYS.k, Home: () => step(-queue.length), End: () => step(queue.length) };
  const action = (inList && inList[e.key]) || KEYS[e.key];
  if (!action || e.target.matches("[role=tab]")) return;
  e.preventDefault();
  action();
}

function startReview() {
  fillFilters();
  const later = (f) => { let timer; return () => { clearTimeout(timer); timer = setTimeout(f, 120); }; };
  const refilter = () => { applyFilters(); choose(queue[0] ?? null, "filter"); };
  for (const id of FILTERS) $(id).addEventListener(id === "search" ? "input" : "change", id === "search" ? later(refilter) : refilter);
  for (const b of document.querySelectorAll("[data-verdict]")) b.addEventListener("click", () => { verdict = b.dataset.verdict; refilter(); });
  $("reset").addEventListener("click", () => { for (const id of FILTERS) $(id).value = id === "sort" ? "r" : ""; verdict = ""; refilter(); });
  const buttons = { previous: KEYS.k, next: KEYS.j, zoom: KEYS.z, masks: KEYS.m, keys: KEYS["?"], "image-previous": KEYS.ArrowLeft, "image-next": KEYS.ArrowRight };
  for (const [id, action] of Object.entries(buttons)) $(id).addEventListener("click", action);
  document.addEventListener("keydown", onKey);
  new ResizeObserver(scaleSoon).observe($("view"));
  new ResizeObserver(build).observe($("list"));
  $("list").addEventListener("scroll", () => requestAnimationFrame(build), { passive: true });
  $("scale").style.background = `linear-gradient(90deg, ${page.palette.stops.map((c) => `rgb(${c})`)})`;
  $("filters").open = !narrow.matches;
  applyFilters();
  const linked = objects[parseInt(location.hash.slice(1), 10)];
  choose(linked ?? queue[0] ?? null, "start");
  if (!objects.length) { showImage(0); showDetail(null); }
}

function startTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const show = (tab) => {
    for (const t of tabs) {
      t.setAttribute("aria-selected", t === tab);
      t.tabIndex = t === tab ? 0 : -1;
      $(t.getAttribute("aria-controls")).hidden = t !== tab;
    }
    if (page.images.length) scaleSoon();
  };
  for (const tab of tabs) {
    tab.addEventListener("click", () => show(tab));
    tab.addEventListener("keydown", (e) => {
      if (e.key !== "ArrowLeft" && e.key !== "ArrowRight") return;
      const other = tabs[(tabs.indexOf(tab) + 1) % tabs.length];
      show(other);
      other.focus();
    });
  }
}

startTabs();
if (page.images.length) startReview();
document.documentElement.dataset.ready = String(Math.round(performance.now()));
