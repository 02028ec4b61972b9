// Small means of drawing: elements, colours, numbers. Text is only ever set as text.
const SVG = "http://www.w3.org/2000/svg";

/** h("p.note", {title: "..."}, "text", child, ...) */
function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  return filled(element, attributes, children);
}

function s(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") Object.assign(element.style, value);
    else if (key === "on") for (const [event, f] of Object.entries(value)) element.addEventListener(event, f);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** The colour of a reliability; null is unknown. */
function colour(r) {
  const { stops, unknown } = page.palette;
  if (r === null) return `rgb(${unknown})`;
  const at = Math.min(Math.max(r, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  return `rgb(${stops[i].map((v, c) => Math.round(v + (stops[i + 1][c] - v) * (at - i)))})`;
}

const two = (v) => (v === null || v === undefined ? "unknown" : v.toFixed(2));
const signed = (v) => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(2);
const chance = (p) => (p < 0.01 ? "p < 0.01" : `p = ${p.toFixed(2)}`);

function chip(verdict) {
  return h("span.chip." + verdict, {}, h("i.sign." + verdict, { "aria-hidden": "true" }), verdict);
}

/** A scale from 0 to 1 with the interval as a band, the reliability as a dot, the detector's score as a tick. */
function gauge(o, wide = false) {
  const at = (v) => `${(100 * v).toFixed(1)}%`;
  return h("span.gauge" + (wide ? ".wide" : ""), { "aria-hidden": "true" },
    o.interval ? h("i.band", { style: { left: at(o.interval[0]), width: at(o.interval[1] - o.interval[0]), background: colour(o.r) } }) : null,
    wide && o.score !== null ? h("i.tick", { style: { left: at(o.score) } }) : null,
    o.r === null ? null : h("i.dot", { style: { left: at(o.r), background: colour(o.r) } }));
}

function inWords(o) {
  const sure = o.r === null ? "reliability unknown" : `reliability ${two(o.r)}`;
  return `${o.name}, ${sure}, verdict ${o.verdict}${o.condition ? ", " + o.condition : ""}`;
}
