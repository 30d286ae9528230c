// The page: what is searched with, how, and what comes back; the address bar keeps what can be kept.

import { showIndex } from "./about.js";
import { Answers } from "./answers.js";
import { Problem, getJson, imageAddress, release, search, useToken } from "./api.js";
import { byId, keepFocus, make, number, plural } from "./dom.js";
import { Filters } from "./filters.js";
import { go, keep, present } from "./past.js";
import { Query } from "./query.js";

const GONE = new Set(["missing", "unreadable", "no_picture", "store"]); // codes of a gallery picture that cannot be had
// Codes of a file that no search will ever take: what was asked before stays. A busy service says timed_out too.
const UNUSABLE = new Set(["not_a_picture", "unsupported", "too_large", "empty", "truncated", "corrupt", "animated", "crashed_decoder", "timed_out", "dead_feature_map"]);
// query: {picture: promise of a Blob, file, crop}, {id, item} or null; another query is another object, so what comes late can
// tell. standing: the last one that the history has an entry of. answered: the one whose answers are shown, `found`.
const state = { query: null, standing: null, sound: null, answered: null, found: null, running: null, retry: null };
const unusable = (error) => UNUSABLE.has(error.code) && !error.passing;
const answers = new Answers(more);
const filters = new Filters(filtered);
const query = new Query(asked, refused);

const TITLES = {
  not_a_picture: "", // the message says all
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
  return { ...what, ...filters.fields() };
}

// What was dropped is nothing to search with; on the Index tab nobody would see it said.
function refused(code, message) {
  if (location.hash === "#index") tab("search");
  problem(new Problem(code, message));
}

// A picture of the visitor's own gets its entry in the history once it is known to be one.
function asked(next) {
  if (next && location.hash === "#index") tab("search"); // it was dropped or pasted there
  state.query = next;
  if (next) {
    run();
    return;
  }
  state.running?.abort();
  filters.reset();
  keepAddress();
  problem(null);
  noAnswers();
}

function more(result) {
  askItem(result.image_id, result);
  keepAddress();
  window.scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

function askItem(id, item) {
  state.query = state.standing = state.sound = { id, item };
  showItem(state.query);
  run();
}

// Shows a gallery item as the query; its title, where it is not known, and its picture follow.
async function showItem(mine) {
  query.takeItem(mine.id, mine.item);
  try {
    mine.item ??= await getJson(`v1/items/${encodeURIComponent(mine.id)}`);
    const address = await imageAddress(`${mine.item.image}?side=512`);
    if (state.query !== mine) {
      release(address);
      return;
    }
    query.name(mine.id, mine.item);
    query.setPicture(address, mine.item.description || mine.id);
  } catch (error) {
    if (state.query === mine && !error.passing) query.gone(); // the search says what is wrong
  }
}

// Shows a query that was asked before, as it was then.
function showQuery(mine) {
  state.query = mine;
  if (mine?.id) showItem(mine);
  else if (mine) query.restore(mine.file, mine.crop);
  else query.reset();
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
      if (mine.id && (GONE.has(error.code) || unusable(error))) return ask(false); // its stored descriptor still searches
      throw error;
    });
    if (running.signal.aborted) return;
    state.answered = mine;
    state.found = found;
    show(found, sent, performance.now() - began);
    stand(mine);
  } catch (error) {
    if (running.signal.aborted) return;
    if (mine.file && mine !== state.sound && unusable(error)) {
      fallBack(error, mine === state.standing);
      return;
    }
    problem(error, mine.id ? () => { showItem(mine); run(); } : run);
    if (state.answered !== mine) noAnswers();
    stand(mine);
  } finally {
    if (state.running === running) document.body.classList.remove("busy");
  }
}

// A file that cannot be used changes nothing: the query before it and its answers stay; one without answers is asked again.
// filed: whether the history has an entry of it, as the Index tab makes one before the answer; the query before it takes its place.
function fallBack(error, filed) {
  keepFocus(byId("choose"), () => showQuery(state.sound));
  const mine = state.query;
  if (filed && location.hash !== "#index") keepAddress("replaceState");
  else state.standing = mine;
  if (mine && mine === state.answered) {
    query.seen(state.found.maps?.query);
    const maps = () => mine === state.query && showMaps();
    byId("query-picture").decode().then(maps, maps);
  } else {
    run();
  }
  problem(error); // after run(), which takes away what was said before
}

// A picture can be used, or might be another time: from now on Back leads to it.
function stand(mine) {
  state.sound = mine;
  if (mine.file && location.hash !== "#index") keepAddress();
  else state.standing = mine;
}

function noAnswers() {
  state.answered = state.found = null;
  byId("status").textContent = "";
  keepFocus(byId("results"), () => {
    byId("found").hidden = byId("maps").hidden = true;
    byId("empty").hidden = false;
  });
}

function show(found, sent, elapsed) {
  query.seen(found.maps?.query);
  const text = document.querySelector('input[name="map"][value="text"]');
  text.parentElement.hidden = !found.maps?.text; // the model has no text branch
  if (text.parentElement.hidden && text.checked) document.querySelector('input[name="map"][value="none"]').checked = true;
  keepFocus(byId("results"), () => {
    byId("empty").hidden = true;
    byId("found").hidden = false;
    byId("maps").hidden = !found.maps;
    answers.show(found.results, sent, found.maps?.query);
  });
  showMaps();
  byId("found-title").textContent = sent.id ? "More like this" : plural(found.results.length, "answer");
  byId("found-note").textContent = `${Math.round(elapsed)} ms${sent.category ? `, in ${sent.category.join(", ")}` : ""}`;
  byId("link").hidden = !sent.id;
  byId("status").textContent = `${plural(found.results.length, "answer")}. The best: ${found.results[0]?.description || found.results[0]?.image_id || "none"}`;
}

function showMaps() {
  const map = document.querySelector('input[name="map"]:checked').value;
  const overlay = byId("query-map");
  const address = state.query === state.answered && state.found?.maps?.[map]; // another query has none yet
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
  byId(token ? "token-text" : "problem-text").textContent = error.retry ? `${error.message} It asks to wait ${error.retry} s.` : error.message;
  if (!token) {
    byId("problem-title").textContent = TITLES[error.code] ?? (unusable(error) ? "This file cannot be used." : "That did not work.");
    return;
  }
  byId("token").focus();
  byId("token").select();
}

// The address names a gallery item and the filters, so that it shows the same search again; what it cannot name is kept.
function keepAddress(how = "pushState") {
  state.standing = state.query;
  if (state.query?.file) {
    keep(state.query, filters.get(), how);
    return;
  }
  const hash = new URLSearchParams();
  if (state.query) {
    hash.set("id", state.query.id);
    filters.toAddress(hash);
  }
  go(hash.size ? `#${hash}` : location.pathname, how);
}

function readAddress() {
  const hash = new URLSearchParams(location.hash.slice(1));
  tab(location.hash === "#index" ? "index" : "search", false);
  const id = hash.get("id");
  const was = present();
  if (id) {
    filters.fromAddress(hash);
    askItem(id);
  } else if (was) {
    if (was.query === state.query && was.query === state.answered && JSON.stringify(was.filters) === JSON.stringify(filters.get())) return; // back from the index
    filters.set(was.filters);
    state.standing = state.sound = was.query;
    showQuery(was.query);
    run();
  } else if (state.query && !location.hash) {
    query.clear(); // back to where nothing was asked yet
  }
}

function filtered() {
  if (!state.query) return;
  if (state.query === state.standing) keepAddress();
  run();
}

function tab(name, keeps = true) {
  for (const each of ["search", "index"]) {
    const button = byId(`tab-${each}`);
    button.setAttribute("aria-selected", String(each === name));
    button.tabIndex = each === name ? 0 : -1;
    byId(`view-${each}`).hidden = each !== name;
  }
  if (name === "index" && !state.retry && byId("token-form").hidden) problem(null); // what was said of a file is spent
  if (keeps && (name === "search" || state.query !== state.standing)) keepAddress(); // a photo has no entry before its answer
  if (keeps && name === "index") go("#index");
  if (name === "index") {
    showIndex((category) => { filters.choose([category]); tab("search"); filtered(); byId(state.query ? "results" : "choose").focus(); }).catch(noIndex);
  }
}

function noIndex(error) {
  if (location.hash !== "#index") return; // the visitor has left it
  keepAddress("replaceState");
  tab("search", false);
  problem(error, () => tab("index"));
}

// Learns of the index, then does what the address asks for; or, with a token that was missing, what failed without it.
async function start(then = readAddress) {
  problem(null);
  try {
    const index = await getJson("v1/index");
    byId("where").textContent = `${number(index.rows)} pictures, version ${index.version}`;
    query.limits = index.limits;
    byId("fold-row").hidden = !index.folds_duplicates;
    byId("rerank-row").hidden = index.factory === "Flat"; // every picture is compared with its stored vector anyway
    const options = index.categories.map((each) => make("option", { value: each.name }, `${each.name} (${number(each.pictures)})`));
    byId("category").replaceChildren(byId("category").options[0], ...options);
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
    byId("samples-text").hidden = !items.length;
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
byId("filters").open = matchMedia("(min-width: 861px)").matches;
start();
