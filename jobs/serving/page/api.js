// The API as the page uses it: tokens, repeated tries of a busy service, errors in words.

const TRIES = 4;
const PATIENCE = 90; // s of one request: longer than the service allows an upload and its answer as it comes
const KEY = "manet-token";

// status: of the HTTP answer; 0: none came; null: the page itself refuses. retry: s that the service asks to wait; 0: it does not say.
export class Problem extends Error {
  constructor(code, message, status = null, retry = 0) {
    super(message);
    this.code = code;
    this.status = status;
    this.retry = retry;
  }

  // Whether the same request may succeed a moment later.
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

export function useToken(given) {
  const token = given.trim();
  if (!/^[ -~]+$/.test(token)) throw new Problem("unauthorized", "This token holds a character that no token has, perhaps one that cannot be seen. Copy it again.");
  sessionStorage.setItem(KEY, token);
}

const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

// The body of an answer, read as "json" or "blob".
async function call(path, kind, { signal, waiting = () => {}, ...options } = {}) {
  for (let attempt = 1; ; attempt += 1) {
    const token = sessionStorage.getItem(KEY);
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const ending = new AbortController(); // AbortSignal.any is not in every browser that people have
    const end = () => ending.abort();
    const timer = setTimeout(end, PATIENCE * 1000);
    signal?.addEventListener("abort", end);
    let response, body;
    try {
      signal?.throwIfAborted();
      response = await fetch(path, { ...options, headers, signal: ending.signal });
      if (response.ok) return await response[kind]();
      body = await response.json().catch(() => null);
    } catch (error) {
      if (signal?.aborted) throw error;
      if (ending.signal.aborted) throw new Problem("timed_out", `No answer within ${PATIENCE} s.`, 0);
      throw new Problem("unreachable", "The service cannot be reached. Is it still running?", 0);
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
    }
    signal?.throwIfAborted();
    if (response.status === 401 && token) {
      if (sessionStorage.getItem(KEY) === token) sessionStorage.removeItem(KEY);
      throw new Problem("unauthorized", "This token is not accepted.", 401);
    }
    const retry = Number(response.headers.get("Retry-After"));
    if (attempt < TRIES && retry > 0 && retry <= 10) {
      waiting(body?.error?.message ?? "The service is busy.");
      await pause(retry * (1 + 0.3 * Math.random()));
      continue;
    }
    throw new Problem(body?.error?.code ?? "failed", body?.error?.message ?? `The service answers ${response.status}.`, response.status, retry > 0 ? Math.ceil(retry) : 0);
  }
}

export const getJson = (path) => call(path, "json");

// fields: name -> value or list of values; a Blob is a picture.
export async function search(fields, { signal, waiting } = {}) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each instanceof Blob) form.append(name, each, each.name ?? "picture");
      else form.append(name, String(each));
    }
  }
  return call("v1/search", "json", { method: "POST", body: form, signal, waiting });
}

// An address for an <img>: as it stands, or fetched with the token where one is in use.
export async function imageAddress(path, signal) {
  const relative = path.replace(/^\//, "");
  if (!sessionStorage.getItem(KEY)) return relative;
  return URL.createObjectURL(await call(relative, "blob", { signal }));
}

// Lets a fetched picture go; it stays to be seen where it is loaded already.
export const release = (address) => address.startsWith("blob:") && URL.revokeObjectURL(address);
