// The answers: pictures with their maps, titles, scores; and the dialog that says why one of them is there.

import { imageAddress, release, search } from "./api.js";
import { byId, draw, make } from "./dom.js";

const PEEK_MS = 250; // of hovering, before a map is shown

export class Answers {
  constructor(more) {
    this.more = more;
    this.cards = [];
    this.opening = new AbortController(); // of the dialog
    byId("why-close").onclick = () => byId("why").close();
    byId("why").addEventListener("click", (event) => event.target === byId("why") && byId("why").close());
    byId("why").addEventListener("close", () => byId("why").open || this.opening.abort());
  }

  // `fields` and `picture`: what was searched with, as it was sent and as the network saw it.
  show(results, fields, picture) {
    this.fields = fields;
    this.picture = picture;
    this.cards.forEach((card) => card.release());
    this.cards = results.map((result, place) => new Card(result, place + 1, this));
    byId("answers").replaceChildren(...this.cards.map((card) => card.element));
  }

  // On every answer: its picture ("none"), its saliency or its text map.
  showMap(map) {
    this.cards.forEach((card) => card.choose(map));
  }

  async why(result) {
    this.opening.abort();
    const { signal } = (this.opening = new AbortController());
    const title = result.description || result.image_id;
    byId("why-text").textContent = "Looking at both pictures...";
    byId("why-caption").textContent = title;
    const query = make("img", { src: this.picture ?? null, alt: "The query picture" });
    const answer = make("img", { alt: title });
    answer.onload = () => release(answer.src);
    byId("why-query").replaceChildren(query);
    byId("why-answer").replaceChildren(answer);
    byId("why-pairs").replaceChildren();
    byId("why").showModal();
    imageAddress(`${result.image}?side=512`, signal).then((address) => { answer.src = address; }, () => {});
    try {
      const found = await search({ ...this.fields, ids: [result.image_id], k: 1, explain: 1, maps: true, fold: false }, { signal });
      query.src = found.maps.query;
      explain(found.results[0]);
    } catch (error) {
      if (!signal.aborted) byId("why-text").textContent = error.message;
    }
  }
}

function explain(result) {
  if (!result?.why) {
    byId("why-text").textContent = "The picture of this answer is no longer where the catalogue says.";
    return;
  }
  byId("why-text").textContent = `The score, ${result.score.toFixed(3)}, is a sum over all pairs of regions of the two pictures. These pairs add most to it, each with its share; boxes of one colour belong together.`;
  const layers = ["query", "answer"].map((side) => {
    const svg = draw("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
    result.why.forEach((pair, place) => {
      const [x, y, width, height] = pair[side];
      const inset = 0.004 * (place + 1);
      const box = { x: x + inset, y: y + inset, width: width - 2 * inset, height: height - 2 * inset, rx: 0.01 };
      svg.append(draw("g", {}, draw("rect", { ...box, class: "under" }), draw("rect", { ...box, class: `line c${place}` })));
    });
    byId(`why-${side}`).append(svg);
    return svg;
  });
  const highlight = (place) => layers.forEach((svg) => [...svg.children].forEach((group, each) => group.classList.toggle("dim", place !== null && each !== place)));
  byId("why-pairs").replaceChildren(
    ...result.why.map((pair, place) => {
      const swatch = draw("svg", { viewBox: "0 0 18 18", "aria-hidden": "true" }, draw("rect", { x: 2, y: 2, width: 14, height: 14, rx: 2, fill: "none", "stroke-width": 3, class: `c${place}` }));
      const share = ((100 * pair.part) / result.score).toFixed(1);
      const on = () => highlight(place);
      const off = () => highlight(null);
      return make("li", {}, make("button", { type: "button", class: "button small", onmouseenter: on, onfocus: on, onmouseleave: off, onblur: off }, swatch, `${share}%`));
    }),
  );
}

class Card {
  constructor(result, rank, answers) {
    this.result = result;
    this.rank = rank;
    this.addresses = {}; // map, or "none" for the picture -> promise of its address
    this.shown = this.chosen = "none"; // a map may be shown for a glance only
    const title = result.description || result.image_id;
    this.image = make("img", { alt: "", loading: "lazy" });
    this.overlay = make("img", { alt: "", class: "overlay" });
    this.note = make("span", { class: "note", "aria-hidden": "true", hidden: true }, "map not available");
    this.picture = make(
      "button",
      { type: "button", class: "picture", "aria-pressed": "false", "aria-label": `Answer ${rank}: ${title}. Show where the network looked`, title: "Show where the network looked" },
      this.image,
      this.overlay,
      this.note,
      make("span", { class: "rank", "aria-hidden": "true" }, String(rank)),
    );
    this.bindPicture();
    this.element = make(
      "li",
      { class: "answer" },
      this.picture,
      make("p", { class: "title", title, onclick: (event) => event.target.classList.toggle("whole") }, title),
      make("p", { class: "meta" }, result.category ?? result.image_id),
      make("div", { class: "score" }, make("meter", { min: 0, max: 1, value: Math.max(0, result.score), "aria-label": `Score of answer ${rank}` }), result.score.toFixed(3)),
      make(
        "div",
        { class: "row" },
        make("button", { type: "button", class: "button small", title: "More like this", "aria-label": `Similar to answer ${rank}: ${title}`, onclick: () => answers.more(result) }, "Similar"),
        make("button", { type: "button", class: "button small", "aria-label": `Why answer ${rank}: ${title}`, onclick: () => answers.why(result) }, "Why"),
      ),
    );
    this.addresses.none = imageAddress(`${result.image}?side=256`);
    this.addresses.none.then((address) => { this.image.src = address; }, () => this.gone());
    this.image.onerror = () => this.gone();
  }

  bindPicture() {
    const other = () => (this.chosen === "none" ? "saliency" : "none");
    let timer = 0;
    this.picture.addEventListener("pointerenter", (event) => {
      const glance = () => other() in this.addresses && this.showMap(other()); // a new map costs a search
      if (event.pointerType === "mouse") timer = setTimeout(glance, PEEK_MS);
    });
    this.picture.addEventListener("pointerleave", () => {
      clearTimeout(timer);
      if (this.shown !== this.chosen) this.showMap(this.chosen);
    });
    this.picture.addEventListener("click", () => {
      clearTimeout(timer);
      this.choose(other());
    });
  }

  choose(map) {
    this.chosen = map;
    this.picture.setAttribute("aria-pressed", String(map !== "none"));
    this.note.hidden = true;
    this.showMap(map);
  }

  async showMap(map) {
    this.shown = map;
    if (map === "none") {
      this.overlay.classList.remove("shown");
      return;
    }
    try {
      this.addresses[map] ??= imageAddress(`${this.result.image}?side=256&map=${map}`);
      const address = await this.addresses[map];
      if (this.shown !== map) return;
      this.overlay.onload = () => this.overlay.classList.toggle("shown", this.shown === map);
      this.overlay.onerror = () => {
        this.overlay.removeAttribute("src");
        this.missing(map);
      };
      if (this.overlay.src !== new URL(address, document.baseURI).href) this.overlay.src = address;
      else this.overlay.classList.toggle("shown", this.overlay.complete);
    } catch {
      this.missing(map);
    }
  }

  // A map did not come: it is as if nobody had asked for it, so that choosing it again asks again.
  missing(map) {
    delete this.addresses[map];
    if (this.shown !== map) return;
    this.choose("none");
    this.note.hidden = false;
    byId("status").textContent = `The map of answer ${this.rank} is not available.`;
  }

  gone() {
    this.image.replaceWith(make("span", { class: "gone" }, "picture not available"));
  }

  release() {
    Object.values(this.addresses).forEach((each) => each.then(release, () => {}));
  }
}
