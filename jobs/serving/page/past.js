// The history of the browser, for what no address can name: pictures of the visitor's own, kept while the page lives.

const MOST = 50; // entries kept: browsers keep no more of a page
const kept = new Map(); // key in history.state -> {query, filters}
const born = performance.timeOrigin; // keys of a page that was loaded again are of no use
let count = 0;

// What the entry at which the browser stands was searched with; undefined: nothing that is kept.
export const present = () => kept.get(history.state?.key);

// Makes an entry of a query with a picture of the visitor's own. Another crop of the same picture takes the entry's place.
// how: "pushState", or "replaceState" of an entry that came to nothing.
export function keep(query, filters, how) {
  const now = location.hash ? undefined : present();
  if (now?.query.file === query.file && JSON.stringify(now.filters) === JSON.stringify(filters)) {
    now.query = query;
    return;
  }
  const key = `${born}-${(count += 1)}`;
  kept.set(key, { query, filters });
  if (kept.size > MOST) kept.delete(kept.keys().next().value);
  history[how]({ key }, "", location.pathname);
}

// Makes an entry of what the address says by itself, unless the browser stands there.
export function go(address, how = "pushState") {
  if (address === (location.hash || location.pathname) && !present()) return;
  history[how](null, "", address);
}
