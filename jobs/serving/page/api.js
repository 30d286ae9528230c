// The API as the page uses it: tokens, repeated tries of a busy service, errors in words.

const TRIES = 4;
const KEY = "manet-token";

export class Problem extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

function headers() {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export function useToken(token) {
  sessionStorage.setItem(KEY, token);
}

const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

async function call(path, options = {}, waiting = () => {}) {
  for (let attempt = 1; ; attempt += 1) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: headers() });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("unreachable", "The service cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    const body = await response.json().catch(() => null);
    const retry = Number(response.headers.get("Retry-After"));
    if (attempt < TRIES && retry > 0 && retry <= 10) {
      waiting(body?.error?.message ?? "The service is busy.");
      await pause(retry * (0.7 + 0.6 * Math.random()));
      continue;
    }
    throw new Problem(body?.error?.code ?? "failed", body?.error?.message ?? `The service answers ${response.status}.`);
  }
}

export const getJson = async (path) => (await call(path)).json();

// fields: name -> value or list of values; a Blob is a picture.
export async function search(fields, { signal, waiting } = {}) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each instanceof Blob) form.append(name, each, each.name ?? "picture");
      else form.append(name, String(each));
    }
  }
  return (await call("v1/search", { method: "POST", body: form, signal }, waiting)).json();
}

// An address for an <img>: as it stands, or fetched with the token where one is in use.
export async function imageAddress(path) {
  const relative = path.replace(/^\//, "");
  if (!sessionStorage.getItem(KEY)) return relative;
  return URL.createObjectURL(await (await call(relative)).blob());
}
