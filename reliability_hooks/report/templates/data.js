// What the page holds, and pictures decoded when they are first needed.
const page = JSON.parse(document.getElementById("page").textContent);
const objects = page.instances.map((o, id) => ({ ...o, id, r: o.r ?? null, verdict: o.verdict }));
const ofImage = page.images.map(() => []);
for (const o of objects) ofImage[o.image].push(o);
for (const row of ofImage) row.sort(byDoubt);

/** Unknown comes before everything: it never reads as trust. */
function byDoubt(a, b) {
  return (a.r ?? -1) - (b.r ?? -1) || a.id - b.id;
}

/** The text of an embedded element; the page is in use before its last picture has come. */
async function embedded(id) {
  for (;;) {
    const element = document.getElementById(id);
    if (element && (element.nextElementSibling || document.readyState !== "loading")) return element.textContent;
    if (document.readyState !== "loading") return null;
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
}

const KEPT = 40;
const urls = new Map();

/** A blob URL of an embedded file; the oldest are given up. */
async function urlOf(id, type) {
  if (!urls.has(id)) {
    urls.set(id, embedded(id).then((text) => {
      const raw = Uint8Array.from(atob(text ?? ""), (c) => c.charCodeAt(0));
      return URL.createObjectURL(new Blob([raw], { type }));
    }));
    if (urls.size > KEPT) {
      const [oldest, url] = urls.entries().next().value;
      urls.delete(oldest);
      setTimeout(async () => URL.revokeObjectURL(await url), 10000);
    }
  }
  return urls.get(id);
}

const decoded = new Map();

/** A decoded picture, for thumbnails; the oldest are given up. */
function pictureOf(k) {
  if (!decoded.has(k)) {
    decoded.set(k, urlOf(`picture-${k}`, "image/jpeg").then(async (url) => {
      const image = new Image();
      image.src = url;
      await image.decode();
      return image;
    }));
    if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
  }
  return decoded.get(k);
}
