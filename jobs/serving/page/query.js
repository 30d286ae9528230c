// The query: a file, a paste, a drop, a photo or a gallery item; shown on its white square, cropped by dragging or by keys.

import { Problem, release } from "./api.js";
import { byId, keepFocus } from "./dom.js";

const LEAST = 0.04; // share of the square below which a drag is a slip
const STEP = 0.02;
const LARGE = 2 << 20; // bytes of a file above which it is made smaller here: the network sees far less
const SHRUNK = 2000; // px of the longer side of a picture that is made smaller
const TAKEN = new Set(["", "image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff"]); // by the service as they are
const TITLE = document.title;
const CROP = "Query picture. Drag to crop; with the keyboard, arrows move the crop, Shift and arrows resize it, Enter searches with it, Escape drops it.";

const HINT = "Drag over the product to search with it alone.";

// onQuery({picture: promise of a Blob, file, crop} | null) is called whenever there is another thing to search with.
export class Query {
  constructor(onQuery, onProblem) {
    this.onQuery = onQuery;
    this.onProblem = onProblem;
    this.limits = { body_bytes: 16 << 20, pixels: 50_000_000 };
    this.file = null; // the whole picture as it was given
    this.crop = null; // {left, top, width, height}, shares of the square
    this.opened = true; // whether the browser can show the picture
    this.stand = ""; // what the service saw of it, which is shown if the browser cannot
    this.bind();
  }

  bind() {
    const pick = (input) => () => byId(input).click();
    byId("choose").onclick = pick("file");
    byId("another").onclick = pick("file");
    byId("photograph").onclick = pick("camera");
    for (const id of ["file", "camera"]) {
      byId(id).onchange = (event) => {
        if (event.target.files[0]) this.take(event.target.files[0]);
        event.target.value = "";
      };
    }
    byId("clear").onclick = () => this.clear();
    byId("whole").onclick = () => this.setCrop(null, true);
    const body = document.body;
    body.addEventListener("dragover", (event) => {
      event.preventDefault();
      body.classList.add("dragging");
    });
    body.addEventListener("dragleave", (event) => event.relatedTarget || body.classList.remove("dragging"));
    body.addEventListener("drop", (event) => {
      event.preventDefault();
      body.classList.remove("dragging");
      const [file, another] = event.dataTransfer.files;
      if (another) this.onProblem("several", "You dropped several files. Drop one picture.");
      else if (file) this.take(file);
      else this.onProblem("no_file", "What you dropped is not a file. Save the picture first, then drop it.");
    });
    document.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      const file = files.find((each) => each.type.startsWith("image/")) ?? files[0];
      if (file) this.take(file);
      else if (!byId("drop").hidden && byId("problem").hidden && byId("token-form").hidden && !event.target.closest?.("input, textarea")) {
        this.onProblem("no_file", "What you pasted is not a picture. Copy a picture, or its file, then paste it.");
      }
    });
    this.bindStage();
  }

  bindStage() {
    const stage = byId("stage");
    let [start, from, before] = [null, null, null];
    const raw = (event) => {
      const box = stage.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    stage.addEventListener("pointerdown", (event) => {
      if (!this.croppable) return;
      from = raw(event);
      start = this.onPhoto(from);
      before = this.crop;
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => start && this.setCrop(between(start, this.onPhoto(raw(event))), false));
    stage.addEventListener("pointerup", (event) => {
      if (!start) return;
      const box = between(start, this.onPhoto(raw(event)));
      const drawn = between(from, raw(event));
      start = null;
      if (drawn.width < LEAST || drawn.height < LEAST) this.setCrop(null, this.searched !== null);
      else if (box.width < LEAST / 2 || box.height < LEAST / 2) this.setCrop(before, false); // all of it on the white around
      else this.setCrop(box, true);
    });
    stage.addEventListener("pointercancel", () => {
      if (start) this.setCrop(before, false); // the answers are those to it
      start = null;
    });
    stage.addEventListener("keydown", (event) => this.key(event));
    byId("query-picture").onerror = () => {
      if (!this.file) this.gone();
      if (!this.file || !this.opened) return;
      this.opened = false;
      this.setPicture(this.stand, "The query picture");
      this.offerCrop();
    };
  }

  key(event) {
    if (!this.croppable) return;
    const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    if (event.key in moves) {
      event.preventDefault();
      const [x, y] = moves[event.key];
      const photo = this.visible({ left: 0, top: 0, width: 1, height: 1 });
      const middle = { left: photo.left + 0.2 * photo.width, top: photo.top + 0.2 * photo.height, width: 0.6 * photo.width, height: 0.6 * photo.height };
      const box = this.crop ?? middle;
      const next = event.shiftKey ? { ...box, width: box.width + x, height: box.height + y } : { ...box, left: box.left + x, top: box.top + y };
      for (const [side, length] of [["left", "width"], ["top", "height"]]) {
        next[length] = Math.min(photo[length], Math.max(Math.min(0.1, photo[length]), next[length]));
        next[side] = Math.min(photo[side] + photo[length] - next[length], Math.max(photo[side], next[side]));
      }
      this.setCrop(this.crop ? next : box, false);
    } else if (event.key === "Enter" && this.crop) {
      this.search();
    } else if (event.key === "Escape" && this.crop) {
      this.setCrop(null, true);
    }
  }

  take(file) {
    this.file = file;
    this.show(URL.createObjectURL(file), "The query picture");
    this.setCrop(null, true);
  }

  // A picture that was taken before, with its crop; it is not asked again.
  restore(file, crop) {
    this.file = file;
    this.searched = crop;
    this.show(URL.createObjectURL(file), "The query picture");
    this.setCrop(crop, false);
  }

  // A gallery item as the query; what the catalogue says of it may be known later, and its picture follows.
  takeItem(id, item) {
    this.file = this.searched = null;
    this.show("", item?.description || id);
    this.name(id, item);
    this.setCrop(null, false);
  }

  // Says which gallery item is the query; without one, nothing.
  name(id, item) {
    const title = item?.description || id;
    byId("query-title").textContent = id ? [title, item?.category].filter(Boolean).join(" \u00b7 ") : "";
    byId("query-title").hidden = !id;
    document.title = id ? `${title} - manet` : TITLE;
  }

  clear() {
    this.reset();
    this.onQuery(null);
    byId("choose").focus();
  }

  reset() {
    this.file = this.searched = null;
    this.setCrop(null, false);
    this.setPicture("", "");
    this.name("");
    this.dropMaps();
    byId("drop").hidden = false;
    for (const id of ["chosen", "query-actions", "crop-hint"]) byId(id).hidden = true;
  }

  show(address, text) {
    this.opened = true;
    this.stand = "";
    this.setPicture(address, text);
    this.name("");
    this.dropMaps();
    this.offerCrop();
    keepFocus(byId("stage"), () => {
      byId("drop").hidden = true;
      byId("chosen").hidden = byId("query-actions").hidden = false;
    });
  }

  // What the service made of the picture: a browser that cannot open it (TIFF) shows that.
  seen(address) {
    this.stand = address ?? "";
    if (this.file && !this.opened && address) this.setPicture(address, "The query picture");
  }

  get croppable() {
    return Boolean(this.file) && this.opened;
  }

  offerCrop() {
    const stage = byId("stage");
    stage.classList.toggle("croppable", this.croppable);
    stage.tabIndex = this.croppable ? 0 : -1;
    stage.setAttribute("aria-label", this.croppable ? CROP : "Query picture");
    byId("crop-hint").hidden = !this.file;
    byId("crop-hint").textContent = this.opened ? HINT : "This browser cannot show a picture of this format, so it cannot be cropped here.";
  }

  // The picture of a gallery item cannot be had: its place says so.
  gone() {
    this.setPicture("", byId("query-picture").alt);
    byId("stage").classList.add("gone");
  }

  setPicture(address, text) {
    const picture = byId("query-picture");
    byId("stage").classList.remove("gone");
    release(picture.src);
    if (address) picture.src = address;
    else picture.removeAttribute("src");
    picture.alt = text;
  }

  // The maps are those of the last answer: another query has none yet.
  dropMaps() {
    const overlay = byId("query-map");
    overlay.classList.remove("shown");
    overlay.removeAttribute("src");
  }

  setCrop(box, search) {
    this.crop = box;
    const shown = byId("cropbox");
    keepFocus(byId("stage"), () => { shown.hidden = byId("whole").hidden = !box; });
    if (box) {
      for (const side of ["left", "top", "width", "height"]) shown.style[side] = `${box[side] * 100}%`;
      byId("query-map").classList.remove("shown");
    }
    if (search) this.search();
  }

  // Lays a map over what was searched with: the whole square, or the square around the crop, cut to it.
  place(overlay) {
    const box = this.file && this.crop ? this.visible(this.crop) : { left: 0, top: 0, width: 1, height: 1 };
    const side = Math.max(box.width, box.height);
    const percent = (share) => `${share * 100}%`;
    Object.assign(overlay.style, {
      inset: "auto",
      left: percent(box.left + (box.width - side) / 2),
      top: percent(box.top + (box.height - side) / 2),
      width: percent(side),
      height: percent(side),
      clipPath: `inset(${percent((side - box.height) / 2 / side)} ${percent((side - box.width) / 2 / side)})`,
    });
  }

  // The part of a box that lies on the picture itself, not on the white around it.
  visible(box) {
    const picture = byId("query-picture");
    const [width, height] = picture.naturalWidth ? [picture.naturalWidth, picture.naturalHeight] : [1, 1];
    const longer = Math.max(width, height);
    const [x, y] = [(1 - width / longer) / 2, (1 - height / longer) / 2];
    const [left, top] = [Math.max(x, box.left), Math.max(y, box.top)];
    const [right, bottom] = [Math.min(1 - x, box.left + box.width), Math.min(1 - y, box.top + box.height)];
    return { left, top, width: Math.max(0.001, right - left), height: Math.max(0.001, bottom - top) };
  }

  // The point of the picture itself that is nearest to one of its square.
  onPhoto([x, y]) {
    const { left, top, width, height } = this.visible({ left: 0, top: 0, width: 1, height: 1 });
    return [Math.min(left + width, Math.max(left, x)), Math.min(top + height, Math.max(top, y))];
  }

  search() {
    if (!this.file) return;
    this.searched = this.crop;
    this.dropMaps();
    const { file, crop } = this;
    const picture = this.toSend(file, crop);
    picture.catch(() => {}); // whoever asks for it says what is wrong
    this.onQuery({ picture, file, crop });
  }

  // The file as it is, or what is cut from it here.
  async toSend(file, crop) {
    const { body_bytes: most, pixels } = this.limits;
    try {
      const cuts = crop || file.size > Math.min(LARGE, most) || !TAKEN.has(file.type);
      return cuts || (await area()) > pixels ? await cut(file, crop, pixels) : file;
    } catch {
      // what the browser cannot open, the service may still name
      if (file.size > most) throw new Problem("too_large", `The file is larger than ${most >> 20} MiB, and this browser cannot make it smaller; give a JPEG or PNG.`);
      return file;
    }
  }
}

// Of the query picture, px; fails when it is not one, or another one follows.
async function area() {
  const picture = byId("query-picture");
  await picture.decode();
  return picture.naturalWidth * picture.naturalHeight;
}

function between([x, y], [right, bottom]) {
  return { left: Math.min(x, right), top: Math.min(y, bottom), width: Math.abs(right - x), height: Math.abs(bottom - y) };
}

// The part of a picture inside a box of its white square, or the whole picture; no larger than SHRUNK or `pixels` in all.
async function cut(file, box, pixels) {
  const bitmap = await createImageBitmap(file);
  const longer = Math.max(bitmap.width, bitmap.height);
  const [x, y] = [(longer - bitmap.width) / 2, (longer - bitmap.height) / 2];
  let [left, top, right, bottom] = [0, 0, bitmap.width, bitmap.height];
  if (box) {
    left = Math.max(0, box.left * longer - x);
    top = Math.max(0, box.top * longer - y);
    right = Math.min(bitmap.width, (box.left + box.width) * longer - x);
    bottom = Math.min(bitmap.height, (box.top + box.height) * longer - y);
  }
  const [width, height] = [Math.max(1, right - left), Math.max(1, bottom - top)];
  const scale = Math.min(1, SHRUNK / Math.max(width, height), Math.sqrt(pixels / (width * height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(width * scale));
  canvas.height = Math.max(1, Math.floor(height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, left, top, width, height, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((done, failed) => canvas.toBlob((blob) => (blob ? done(blob) : failed(new Error("no blob"))), "image/jpeg", 0.95));
}
