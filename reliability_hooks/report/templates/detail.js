// All that is known about one object.
const LEAST = 0.01; // a share below this is counted among the others

function showDetail(o) {
  const detail = $("detail");
  if (!o) {
    const empty = shownImage >= 0 && !ofImage[shownImage].length;
    return detail.replaceChildren(h("p.empty", {}, empty ? "Nothing was detected on this image." : "No object is chosen."));
  }
  detail.replaceChildren(...[head(o), judgement(o), maps(o), reasons(o), unusual(o), remarks(o)].filter(Boolean));
}

function head(o) {
  return h("div.head", {},
    h("h2", {}, o.name),
    h("p.big", { style: { "--tone": colour(o.r) } }, h("b", {}, two(o.r)),
      h("span", {}, o.r === null ? "No reliability: do not take this for trust." : "reliability",
        o.interval ? h("small", {}, `90 % interval ${two(o.interval[0])} – ${two(o.interval[1])}`) : null)),
    gauge(o, true),
    h("p.axis", { "aria-hidden": "true" }, h("span", {}, "0"), h("span", {}, "▏detector's score"), h("span", {}, "1")));
}

function judgement(o) {
  const promise = page.promise === null ? null : `${Math.round(100 * page.promise)} %`;
  const says = {
    accept: promise ? `at least ${promise} of what is accepted is right` : "accepted",
    reject: "at most 10 % of what is rejected is right",
    unknown: page.fitted ? "neither trust nor rejection can be promised" : "no monitor was fitted",
  };
  const rows = [
    ["Verdict", h("span", {}, chip(o.verdict), h("small", {}, says[o.verdict]))],
    o.correct === undefined ? null : ["In truth", o.correct ? "right" : "wrong"],
    ["Detector's score", two(o.score)],
    o.iou === undefined ? null : ["Expected IoU", two(o.iou)],
    o.condition === undefined ? null : ["Condition", o.condition || NONE],
  ];
  return h("dl.rows", {}, ...rows.filter(Boolean).map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
}

/** Signed bars about a middle line; the sign is written too. */
function reasons(o) {
  if (!o.shares || o.r === null) return null;
  const kept = o.shares.filter(([, change]) => Math.abs(change) >= LEAST);
  const total = o.shares.reduce((sum, [, change]) => sum + change, 0);
  const rest = total - kept.reduce((sum, [, change]) => sum + change, 0);
  if (Math.abs(rest) >= LEAST / 2) kept.push(["all else", rest]);
  const reach = Math.max(0.05, ...kept.map(([, change]) => Math.abs(change)));
  return h("section", {}, h("h3", {}, "What it rests on"),
    h("p.sum", {}, h("span", {}, "typical ", h("b", {}, two(o.r - total))), h("span", {}, "evidence ", h("b", {}, signed(total))),
      h("span", {}, "this one ", h("b", {}, two(o.r)))),
    h("ul.bars", {}, ...kept.map(([words, change]) => h("li", {},
      h("span.words", {}, words), h("span.value", {}, signed(change)),
      h("span.track", { "aria-hidden": "true" }, h("i." + (change < 0 ? "down" : "up"), { style: { width: `${50 * Math.abs(change) / reach}%` } }))))));
}

function maps(o) {
  if (!o.maps) return null;
  const toggle = (map) => showLayer(layer === map ? null : map);
  return h("section", {}, h("h3", {}, "Where it looked"),
    h("p.choices", {}, ...o.maps.map((map) => h("button", { "data-map": map.id, "aria-pressed": "false", on: { click: () => toggle(map) } }, map.name))),
    ...o.maps.map((map) => h("p.note", { "data-says": map.id, hidden: "" }, map.words,
      map.reach === undefined || map.reach === null ? null : h("span.signed", {}, h("span", {}, signed(-map.reach)), h("i"), h("span", {}, signed(map.reach))))));
}

/** Its out-of-distribution score among those of right detections at calibration. */
function unusual(o) {
  if (!o.ood || (o.ood.score === null && o.ood.p === null)) return null;
  const cell = page.calibration[o.ood.cell ?? -1];
  const p = o.ood.p;
  const said = p === null ? "It has no p-value." :
    `${o.ood.is ? "Taken for an unknown object" : "Not taken for an unknown object"}: ` +
    `${p < 0.01 ? "less than 1" : Math.round(100 * p)} % of the right detections at calibration are as unusual (${chance(p)}).`;
  return h("section", {}, h("h3", {}, "How unusual it is"),
    cell && o.ood.score !== null ? histogram(cell, o.ood.score, o.ood.is) : null,
    h("p.note" + (o.ood.is ? ".warn" : ""), {}, said));
}

function histogram(cell, score, isOod) {
  const [width, height, bottom] = [300, 96, 80];
  const { edges, weights } = cell;
  const low = Math.min(edges[0], score);
  const high = Math.max(edges[edges.length - 1], score);
  const x = (v) => 4 + (width - 8) * (high > low ? (v - low) / (high - low) : 0.5);
  const most = Math.max(...weights, 1e-9);
  const bars = weights.map((w, i) => s("rect", {
    class: "column", x: x(edges[i]).toFixed(1), width: Math.max(x(edges[i + 1]) - x(edges[i]) - 1, 1).toFixed(1),
    y: (bottom - 58 * w / most).toFixed(1), height: (58 * w / most).toFixed(1),
  }));
  const at = x(score);
  return s("svg", { class: "histogram", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Scores of right detections of ${cell.images} calibration images (${cell.name}); this object lies at ${(100 * (at - 4) / (width - 8)).toFixed(0)} % of the axis, right is more unusual.` },
    ...bars, s("line", { class: "ground", x1: 4, x2: width - 4, y1: bottom, y2: bottom }),
    s("g", { class: isOod ? "marker ood" : "marker" },
      s("line", { x1: at, x2: at, y1: 14, y2: bottom }), s("circle", { cx: at, cy: 14, r: 4 }),
      s("text", { x: at > width / 2 ? at - 8 : at + 8, y: 13, "text-anchor": at > width / 2 ? "end" : "start" }, "this one")),
    s("text", { class: "scale", x: 4, y: height - 3 }, "usual"),
    s("text", { class: "scale", x: width / 2, y: height - 3, "text-anchor": "middle" }, cell.name),
    s("text", { class: "scale", x: width - 4, y: height - 3, "text-anchor": "end" }, "unusual"));
}

function remarks(o) {
  return o.remarks ? h("section", {}, h("h3", {}, "Found out"), h("ul.remarks", {}, ...o.remarks.map((r) => h("li", {}, r)))) : null;
}
