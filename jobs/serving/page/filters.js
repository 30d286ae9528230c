// The filters and the ranking: which categories, how many answers, folded and re-ranked or not.

import { byId, keepFocus, make } from "./dom.js";

const USUAL = { categories: [], k: "7", rerank: true, fold: true };

// onChange() is called when the visitor changes one of them.
export class Filters {
  constructor(onChange) {
    this.onChange = onChange;
    byId("category").onchange = (event) => {
      if (event.target.value) this.choose([...this.categories, event.target.value]);
      event.target.value = "";
      onChange();
    };
    for (const id of ["fold", "rerank"]) byId(id).onchange = onChange;
    byId("k").onchange = () => {
      this.sayHowMany();
      onChange();
    };
    this.set(USUAL);
  }

  get() {
    return { categories: this.categories, k: byId("k").value, rerank: byId("rerank").checked, fold: byId("fold").checked };
  }

  set({ categories, k, rerank, fold }) {
    this.choose(categories);
    byId("k").value = k;
    if (!byId("k").value && /^([1-9]\d?|100)$/.test(k)) byId("k").add(new Option(k, k, false, true)); // a link's own
    if (!byId("k").value) byId("k").value = USUAL.k; // no number of answers
    byId("rerank").checked = rerank;
    byId("fold").checked = fold;
    this.sayHowMany();
  }

  reset() {
    this.set(USUAL);
  }

  choose(names) {
    this.categories = [...new Set(names)];
    byId("categories").replaceChildren(
      ...this.categories.map((name) => {
        const drop = () => {
          keepFocus(byId("category"), () => this.choose(this.categories.filter((each) => each !== name)));
          this.onChange();
        };
        return make("li", { class: "chip" }, name, make("button", { type: "button", "aria-label": `Drop the filter ${name}`, onclick: drop }, "\u00d7"));
      }),
    );
    byId("categories").hidden = !this.categories.length;
    byId("category").options[0].text = this.categories.length ? "Add a category\u2026" : "All categories";
  }

  // As fields of a search.
  fields() {
    const { categories, ...rest } = this.get();
    return categories.length ? { ...rest, category: categories } : rest;
  }

  // As a part of the address; what is usual is left out.
  toAddress(hash) {
    const { categories, k, rerank, fold } = this.get();
    if (k !== USUAL.k) hash.set("k", k);
    categories.forEach((name) => hash.append("category", name));
    if (!rerank) hash.set("rerank", "false");
    if (!fold) hash.set("fold", "false");
  }

  fromAddress(hash) {
    this.set({ categories: hash.getAll("category").filter(Boolean), k: hash.get("k") ?? USUAL.k, rerank: hash.get("rerank") !== "false", fold: hash.get("fold") !== "false" });
  }

  sayHowMany() {
    byId("how-many").textContent = byId("k").value;
  }
}
