// The page: what is searched with, how, and what comes back; the address bar keeps what can be kept.

import { showIndex } from "./about.js";
import { Answers } from "./answers.js";
import { Problem, getJson, imageAddress, release, search, useToken } from "./api.js";
import { byId, keepFocus, make, number, plural } from "./dom.js";
import { Query } from "./query.js";

const GONE = new Set(["missing", "unreadable", "no_picture", "store"]); // codes of a gallery picture that cannot be had
// query: {picture: promise of a Blob}, {id} or null; another query is another object, so what comes late can tell.
const state = { query: null, answered: null, categories: [], running: null, retry: null };
const answers = new Answers(more);
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

async function fields(mine) {
  const what = mine.id ? { id: mine.id } : { picture: await mine.picture };
  const found = { ...what, k: byId("k").value, rerank: byId("rerank").checked, fold: byId("fold").checked };
  return state.categories.length ? { ...found, category: state.categories } : found;
}

function asked(next) {
  state.query = next;
  keepAddress();
  if (next) run();
  else {
    state.running?.abort();
    problem(null);
    noAnswers();
  }
}

function more(result) {
  askItem(result.image_id, result);
  keepAddress();
  window.scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

// Searches with a gallery item; its title, where it is not known, and its picture follow.
async function askItem(id, known) {
  const mine = (state.query = { id });
  query.takeItem(known?.description || id);
  run();
  try {
    const item = known ?? (await getJson(`v1/items/${encodeURIComponent(id)}`));
    const address = await imageAddress(`${item.image}?side=512`);
    if (state.query === mine) query.setPicture(address, item.description || id);
    else release(address);
  } catch {
    // the search says what is wrong
  }
}

async function run() {
  const mine = state.query;
  if (!mine) return;
  state.running?.abort();
  const running = (state.running = new AbortController());
  problem(null);
  document.body.classList.add("busy");
  byId("status").textContent = "Searching";
  const began = performance.now();
  try {
    const waiting = (message) => { byId("status").textContent = `${message} Trying again.`; };
    const sent = await fields(mine);
    const ask = (maps) => search({ ...sent, maps }, { signal: running.signal, waiting });
    const found = await ask(true).catch((error) => {
      if (mine.id && GONE.has(error.code)) return ask(false); // its stored descriptor still searches
      throw error;
    });
    show(found, sent, performance.now() - began);
    state.answered = mine;
  } catch (error) {
    if (running.signal.aborted) return;
    problem(error, run);
    if (state.answered !== mine) noAnswers();
  } finally {
    if (state.running === running) document.body.classList.remove("busy");
  }
}

function noAnswers() {
  state.answered = null;
  byId("status").textContent = "";
  keepFocus(byId("results"), () => {
    byId("found").hidden = byId("maps").hidden = true;
    byId("empty").hidden = false;
  });
}

function show(found, sent, elapsed) {
  byId("query-map").dataset.saliency = found.maps?.saliency ?? "";
  byId("query-map").dataset.text = found.maps?.text ?? "";
  const text = document.querySelector('input[name="map"][value="text"]');
  text.disabled = !found.maps?.text;
  text.parentElement.title = text.disabled ? "The model has no text branch" : "";
  if (text.disabled && text.checked) document.querySelector('input[name="map"][value="none"]').checked = true;
  keepFocus(byId("results"), () => {
    byId("empty").hidden = true;
    byId("found").hidden = false;
    byId("maps").hidden = !found.maps;
    answers.show(found.results, sent, found.maps?.query);
  });
  showMaps();
  byId("found-title").textContent = sent.id ? "More like this" : plural(found.results.length, "answer");
  byId("found-note").textContent = `${Math.round(elapsed)} ms${state.categories.length ? `, in ${state.categories.join(", ")}` : ""}`;
  byId("link").hidden = !sent.id;
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
  const token = error?.code === "unauthorized";
  state.retry = again;
  keepFocus(byId("results"), () => {
    byId("problem").hidden = !error || token;
    byId("token-form").hidden = !token;
    byId("again").hidden = !again || !error?.passing;
  });
  if (!error) return;
  byId("status").textContent = "";
  byId(token ? "token-text" : "problem-text").textContent = error.message;
  if (!token) {
    byId("problem-title").textContent = TITLES[error.code] ?? "That did not work.";
    return;
  }
  byId("token").focus();
  byId("token").select();
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

function readAddress() {
  const hash = new URLSearchParams(location.hash.slice(1));
  tab(location.hash === "#index" ? "index" : "search", false);
  const id = hash.get("id");
  if (!id) {
    if (state.query?.id && !location.hash) query.clear(); // back to where nothing was asked yet
    return;
  }
  setCategories(hash.getAll("category"));
  byId("k").value = hash.get("k") ?? "7";
  if (!byId("k").value) byId("k").value = "7"; // a number that is not offered
  byId("rerank").checked = hash.get("rerank") !== "false";
  byId("fold").checked = hash.get("fold") !== "false";
  askItem(id);
}

function setCategories(names) {
  state.categories = [...new Set(names)];
  byId("categories").replaceChildren(
    ...state.categories.map((name) => {
      const drop = () => {
        keepFocus(byId("category"), () => setCategories(state.categories.filter((each) => each !== name)));
        filtered();
      };
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
  if (keep && name === "search") keepAddress();
  else if (keep && location.hash !== "#index") history.pushState(null, "", "#index");
  if (name === "index") {
    showIndex((category) => { setCategories([category]); tab("search"); filtered(); byId(state.query ? "results" : "choose").focus(); }).catch((error) => { tab("search", false); problem(error, () => tab("index")); });
  }
}

// Learns of the index, then does what the address asks for; or, with a token that was missing, what failed without it.
async function start(then = readAddress) {
  problem(null);
  try {
    const index = await getJson("v1/index");
    byId("where").textContent = `${number(index.rows)} pictures, version ${index.version}`;
    query.limits = index.limits;
    byId("fold-row").hidden = !index.folds_duplicates;
    const options = index.categories.map((each) => make("option", { value: each.name }, `${each.name} (${number(each.pictures)})`));
    byId("category").replaceChildren(make("option", { value: "" }, "All categories"), ...options);
    byId("category").closest("label").hidden = !options.length;
  } catch (error) {
    problem(error, () => start(resume));
    return;
  }
  samples();
  then();
}

function resume() {
  if (state.query?.picture && location.hash !== "#index") run();
  else readAddress();
}

async function samples() {
  try {
    const { items } = await getJson("v1/items?count=16");
    byId("samples").replaceChildren(...items.map(sample));
  } catch (error) {
    if (!state.query) problem(error, () => start(resume));
  }
}

function sample(item) {
  const title = item.description || item.image_id;
  const image = make("img", { alt: "", loading: "lazy" });
  const button = make("button", { type: "button", class: "picture", title, "aria-label": `Search with ${title}`, onclick: () => more(item) }, image);
  const element = make("li", {}, button);
  image.onload = () => release(image.src);
  image.onerror = () => element.remove(); // a picture may be gone
  imageAddress(`${item.image}?side=128`).then((address) => { image.src = address; }, image.onerror);
  return element;
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
  try {
    useToken(byId("token").value);
    start(resume);
  } catch (error) {
    problem(error);
  }
};
document.querySelector(".skip").onclick = (event) => {
  event.preventDefault(); // the address stays that of the search
  tab("search");
  byId("results").focus();
};
window.addEventListener("popstate", readAddress);
setCategories([]);
byId("filters").open = matchMedia("(min-width: 861px)").matches;
start();
