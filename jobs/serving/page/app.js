// The page: what is searched with, how, and what comes back; the address bar keeps what can be kept.

import { showIndex } from "./about.js";
import { Answers } from "./answers.js";
import { Problem, getJson, imageAddress, search, useToken } from "./api.js";
import { byId, make, number, plural } from "./dom.js";
import { Query } from "./query.js";

const GONE = new Set(["missing", "unreadable", "no_picture", "store"]); // codes of a gallery picture that cannot be had
const state = { query: null, categories: [], running: null, retry: null };
const answers = new Answers({ more, fields });
const query = new Query(asked, (code, message) => problem(new Problem(code, message)));

const TITLES = {
  not_a_picture: "Not a picture.",
  unsupported: "Unknown format.",
  too_large: "Too large.",
  unreachable: "No answer.",
  overloaded: "Busy.",
  too_many_requests: "Too many searches.",
  unknown_item: "Not in the shop.",
  nothing_passes: "Nothing to search in.",
};

function fields() {
  const found = { ...state.query, k: byId("k").value, rerank: byId("rerank").checked, fold: byId("fold").checked };
  return state.categories.length ? { ...found, category: state.categories } : found;
}

function asked(next) {
  state.query = next;
  keepAddress();
  if (next) run();
  else {
    state.running?.abort();
    problem(null);
    byId("found").hidden = byId("maps").hidden = true;
    byId("empty").hidden = false;
  }
}

async function more(result) {
  const address = `${result.image}?side=512`;
  query.takeItem(result.image_id, await imageAddress(address).catch(() => address), result.description);
  window.scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  asked({ id: result.image_id });
}

async function run() {
  if (!state.query) return;
  state.running?.abort();
  const running = (state.running = new AbortController());
  problem(null);
  document.body.classList.add("busy");
  byId("status").textContent = "Searching";
  const began = performance.now();
  try {
    const waiting = (message) => { byId("status").textContent = `${message} Trying again.`; };
    const ask = (maps) => search({ ...fields(), maps }, { signal: running.signal, waiting });
    const found = await ask(true).catch((error) => {
      if (state.query?.id && GONE.has(error.code)) return ask(false); // its stored descriptor still searches
      throw error;
    });
    show(found, performance.now() - began);
  } catch (error) {
    if (error.name !== "AbortError") problem(error, run);
  } finally {
    if (state.running === running) document.body.classList.remove("busy");
  }
}

function show(found, elapsed) {
  byId("empty").hidden = true;
  byId("found").hidden = false;
  byId("maps").hidden = !found.maps;
  byId("query-map").dataset.saliency = found.maps?.saliency ?? "";
  byId("query-map").dataset.text = found.maps?.text ?? "";
  byId("query-picture").dataset.searched = found.maps?.query ?? "";
  const text = document.querySelector('input[name="map"][value="text"]');
  text.disabled = !found.maps?.text;
  text.parentElement.title = text.disabled ? "The model has no text branch" : "";
  if (text.disabled && text.checked) document.querySelector('input[name="map"][value="none"]').checked = true;
  showMaps();
  answers.show(found.results);
  byId("found-title").textContent = state.query.id ? "More like this" : plural(found.results.length, "answer");
  byId("found-note").textContent = `${Math.round(elapsed)} ms${state.categories.length ? `, in ${state.categories.join(", ")}` : ""}`;
  byId("link").hidden = !state.query.id;
  byId("status").textContent = `${plural(found.results.length, "answer")}. The best: ${found.results[0]?.description || found.results[0]?.image_id || "none"}`;
}

function showMaps() {
  const map = document.querySelector('input[name="map"]:checked').value;
  const overlay = byId("query-map");
  const address = overlay.dataset[map];
  if (address) overlay.src = address;
  query.place(overlay);
  overlay.classList.toggle("shown", Boolean(address));
  answers.showMap(map);
}

function problem(error, again = null) {
  byId("problem").hidden = !error || error.code === "unauthorized";
  byId("token-form").hidden = error?.code !== "unauthorized";
  state.retry = again;
  if (!error) return;
  byId("status").textContent = "";
  if (error.code === "unauthorized") {
    byId("token").focus();
    return;
  }
  byId("problem-title").textContent = TITLES[error.code] ?? "That did not work.";
  byId("problem-text").textContent = error.message;
  byId("again").hidden = !again || !["unreachable", "overloaded", "timed_out", "too_many_requests", "internal", "stopping"].includes(error.code);
}

// The address names a gallery item and the filters, so that it shows the same search again.
function keepAddress() {
  const hash = new URLSearchParams();
  if (state.query?.id) hash.set("id", state.query.id);
  if (state.query?.id && byId("k").value !== "7") hash.set("k", byId("k").value);
  state.categories.forEach((name) => state.query?.id && hash.append("category", name));
  if (state.query?.id && !byId("rerank").checked) hash.set("rerank", "false");
  if (state.query?.id && !byId("fold").checked) hash.set("fold", "false");
  const next = hash.size ? `#${hash}` : location.pathname;
  if (next !== (location.hash || location.pathname)) history.pushState(null, "", next);
}

async function readAddress() {
  const hash = new URLSearchParams(location.hash.slice(1));
  tab(location.hash === "#index" ? "index" : "search", false);
  const id = hash.get("id");
  if (!id) {
    if (state.query?.id && location.hash !== "#index") query.clear(); // back to where nothing was asked yet
    return;
  }
  setCategories(hash.getAll("category"));
  byId("k").value = hash.get("k") ?? "7";
  byId("rerank").checked = hash.get("rerank") !== "false";
  byId("fold").checked = hash.get("fold") !== "false";
  try {
    const item = await getJson(`v1/items/${encodeURIComponent(id)}`);
    query.takeItem(id, await imageAddress(`${item.image}?side=512`), item.description);
    state.query = { id };
    run();
  } catch (error) {
    problem(error, readAddress);
  }
}

function setCategories(names) {
  state.categories = [...new Set(names)];
  byId("categories").replaceChildren(
    ...state.categories.map((name) => {
      const drop = () => { setCategories(state.categories.filter((each) => each !== name)); filtered(); };
      return make("li", { class: "chip" }, name, make("button", { type: "button", "aria-label": `Drop the filter ${name}`, onclick: drop }, "\u00d7"));
    }),
  );
  byId("categories").hidden = !state.categories.length;
}

function filtered() {
  if (!state.query) return;
  keepAddress();
  run();
}

function tab(name, keep = true) {
  for (const each of ["search", "index"]) {
    const button = byId(`tab-${each}`);
    button.setAttribute("aria-selected", String(each === name));
    button.tabIndex = each === name ? 0 : -1;
    byId(`view-${each}`).hidden = each !== name;
  }
  if (keep) history.pushState(null, "", name === "index" ? "#index" : location.pathname);
  if (keep && name === "search") keepAddress();
  if (name === "index") {
    showIndex((category) => { setCategories([category]); tab("search"); filtered(); byId(state.query ? "results" : "choose").focus(); }).catch((error) => { tab("search", false); problem(error, () => tab("index")); });
  }
}

async function start() {
  try {
    const [index, items] = await Promise.all([getJson("v1/index"), getJson("v1/items?count=16")]);
    byId("where").textContent = `${number(index.rows)} pictures, version ${index.version}`;
    query.limit = index.limits.body_bytes;
    byId("fold-row").hidden = !index.folds_duplicates;
    const options = index.categories.map((each) => make("option", { value: each.name }, `${each.name} (${number(each.pictures)})`));
    byId("category").append(...options);
    byId("category").closest("label").hidden = !options.length;
    const samples = await Promise.allSettled(items.items.map(sample)); // a picture may be gone
    byId("samples").replaceChildren(...samples.filter((each) => each.value).map((each) => each.value));
    problem(null);
    await readAddress();
  } catch (error) {
    problem(error, start);
  }
}

async function sample(item) {
  const title = item.description || item.image_id;
  const image = make("img", { src: await imageAddress(`${item.image}?side=128`), alt: "", loading: "lazy" });
  const button = make("button", { type: "button", class: "picture", title, "aria-label": `Search with ${title}`, onclick: () => more(item) }, image);
  image.onerror = () => button.parentElement.remove();
  return make("li", {}, button);
}

for (const name of ["search", "index"]) {
  byId(`tab-${name}`).onclick = () => tab(name);
  byId(`tab-${name}`).onkeydown = (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = name === "search" ? "index" : "search";
    tab(other);
    byId(`tab-${other}`).focus();
  };
}
byId("maps").onchange = showMaps;
byId("category").onchange = (event) => {
  if (event.target.value) setCategories([...state.categories, event.target.value]);
  event.target.value = "";
  filtered();
};
for (const id of ["fold", "rerank", "k"]) byId(id).onchange = filtered;
byId("again").onclick = () => state.retry?.();
byId("link").onclick = async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    byId("link").textContent = "Copied";
  } catch {
    byId("link").textContent = "Copy it from the address bar";
  }
  setTimeout(() => { byId("link").textContent = "Copy link"; }, 2000);
};
byId("token-form").onsubmit = (event) => {
  event.preventDefault();
  useToken(byId("token").value);
  start();
};
window.addEventListener("popstate", readAddress);
setCategories([]);
byId("filters").open = matchMedia("(min-width: 861px)").matches;
start();
