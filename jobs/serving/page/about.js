// The second tab: the index, how well it finds, what it holds, what it could not take.

import { getJson } from "./api.js";
import { byId, draw, make, number, plural } from "./dom.js";

const WIDTH = 640;
const HEIGHT = 340;
const EDGE = { left: 52, right: 24, top: 16, bottom: 44 };

export async function showIndex(onCategory) {
  const index = await getJson("v1/index");
  const report = index.report;
  const recall = report.tuning ? report.tuning["recall@7"] : report["recall@7"];
  const figures = [
    ["Pictures", number(index.rows)],
    ["Recall@7 of exact search", recall === undefined ? "not measured" : recall.toFixed(3)],
    ["Categories", number(index.categories.length)],
    ["Rejected", index.rejects ? number(index.rejects.count) : "not known"],
    ["Shards", number(index.shards)],
    ["Dimensions", number(index.dim ?? 0)],
  ];
  byId("view-index").replaceChildren(
    make("h2", { class: "visually-hidden" }, "The index"),
    make("p", { class: "sub" }, `Made ${index.created.slice(0, 10)}; ${kind(index.factory)}; descriptor ${index.descriptor}; model ${index.model_sha256.slice(0, 12)}.`),
    make("dl", { class: "figures" }, ...figures.map(([name, value]) => make("div", { class: "figure" }, make("dt", {}, name), make("dd", {}, value)))),
    make("div", { class: "two" }, frontier(index, report), rejects(index.rejects)),
    make("h2", {}, "Categories"),
    categories(index.categories, onCategory),
  );
}

function kind(factory) {
  if (!factory) return "kind not known";
  return factory === "Flat" ? "exact search: a query is compared with every picture (Flat)" : `approximate search (${factory})`;
}

const MEANING = "Recall is agreement with exact search over the same descriptors, not how good the answers are: the report's MAP@7 says that.";

function frontier(index, report) {
  const section = make("section", { "aria-label": "Recall" }, make("h2", {}, "How much of exact search it finds"));
  const tuning = report.tuning;
  if (!tuning) {
    const why = report["recall@7"] === 1 ? "Every query is compared with every picture, so nothing that exact search finds is missed." : "Recall was not measured.";
    section.append(make("div", { class: "card" }, make("p", { class: "sub" }, `${why} ${report.reason ? `The index says: ${report.reason}.` : ""}`), make("p", { class: "sub" }, MEANING)));
    return section;
  }
  const interval = `${tuning["recall@7_low"].toFixed(3)} to ${tuning["recall@7_high"].toFixed(3)}`;
  section.append(
    make(
      "div",
      { class: "card" },
      make("p", { class: "sub" }, `Of the 7 nearest pictures by exact search, ${(100 * tuning["recall@7"]).toFixed(1)}% are found (95% interval ${interval}, ${plural(tuning.queries, "query").replace("querys", "queries")}); the target was ${(100 * tuning.recall_target).toFixed(0)}%. A search visits ${plural(tuning.nprobe, "cell")} and re-scores ${plural(tuning.refine, "candidate")}.${tuning.of_version ? ` So it was measured of version ${tuning.of_version}; the index has changed since.` : ""}`),
      make("p", { class: "sub" }, MEANING),
      plot(tuning),
      details(tuning),
    ),
  );
  return section;
}

function plot(tuning) {
  const rows = tuning.seen;
  const [low, high] = [Math.min(...rows.map((row) => row.bytes)), Math.max(...rows.map((row) => row.bytes))].map(Math.log10);
  const least = Math.min(tuning.recall_target, ...rows.map((row) => row.recall));
  const floor = Math.max(0, Math.floor(least * 20) / 20 - (least > 0.949 ? 0.01 : 0));
  const x = (bytes) => EDGE.left + ((Math.log10(bytes) - low) / (high - low || 1)) * (WIDTH - EDGE.left - EDGE.right);
  const y = (recall) => HEIGHT - EDGE.bottom - ((recall - floor) / (1 - floor || 1)) * (HEIGHT - EDGE.top - EDGE.bottom);
  const svg = draw("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Recall against what a query reads, one line for each number of candidates; the table below has the same figures" });
  for (let step = 0; step <= 4; step += 1) {
    const value = floor + ((1 - floor) * step) / 4;
    svg.append(draw("line", { class: "axis", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(value), y2: y(value) }), draw("text", { x: EDGE.left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(2)));
  }
  svg.append(draw("line", { class: "target", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(tuning.recall_target), y2: y(tuning.recall_target) }));
  const depths = [...new Set(rows.map((row) => row.refine))].sort((a, b) => a - b);
  depths.forEach((depth, place) => {
    const line = rows.filter((row) => row.refine === depth).sort((a, b) => a.bytes - b.bytes);
    svg.append(draw("path", { class: `s${place % 5}`, d: `M${line.map((row) => `${x(row.bytes)},${y(row.recall)}`).join("L")}` }));
    line.forEach((row) => svg.append(draw("circle", { class: `s${place % 5}`, cx: x(row.bytes), cy: y(row.recall), r: 3 }, draw("title", {}, `${row.nprobe} cells, ${row.refine} candidates: ${row.recall.toFixed(4)}`))));
    svg.append(draw("circle", { class: `s${place % 5}`, cx: WIDTH - 170, cy: HEIGHT - EDGE.bottom - 18 - 18 * (depths.length - 1 - place), r: 4 }), draw("text", { x: WIDTH - 160, y: HEIGHT - EDGE.bottom - 14 - 18 * (depths.length - 1 - place) }, `${depth} candidates`));
  });
  const chosen = rows.find((row) => row.nprobe === tuning.nprobe && row.refine === tuning.refine);
  if (chosen) svg.append(draw("circle", { class: "chosen", cx: x(chosen.bytes), cy: y(chosen.recall), r: 8 }));
  for (const share of [0, 0.5, 1]) {
    const bytes = 10 ** (low + share * (high - low));
    svg.append(draw("text", { x: x(bytes), y: HEIGHT - EDGE.bottom + 18, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" }, bytes >= 1e6 ? `${(bytes / 1e6).toPrecision(2)} MB` : `${(bytes / 1e3).toPrecision(2)} kB`));
  }
  svg.append(draw("text", { x: (EDGE.left + WIDTH - EDGE.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "read by a query (the ring: the setting in use; dotted: the target)"));
  return svg;
}

function details(tuning) {
  const head = make("tr", {}, ...["cells", "candidates", "recall@7", "kB read"].map((name) => make("th", { scope: "col" }, name)));
  const rows = tuning.seen.map((row) => make("tr", {}, ...[row.nprobe, row.refine, row.recall.toFixed(4), number(Math.round(row.bytes / 1e3))].map((value) => make("td", {}, String(value)))));
  return make("details", {}, make("summary", {}, "The figures"), make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function rejects(found) {
  const section = make("section", { "aria-label": "Rejects" }, make("h2", {}, "What it could not take"));
  const card = make("div", { class: "card" });
  section.append(card);
  if (!found) card.append(make("p", { class: "sub" }, "The descriptors that the index was built from are not at hand any more."));
  else if (!found.count) card.append(make("p", { class: "sub" }, "Every picture of the catalogue could be used."));
  else {
    const head = make("tr", {}, ...["picture", "stage", "reason"].map((name) => make("th", { scope: "col" }, name)));
    const reasons = Object.entries(found.reasons).map(([reason, count]) => `${reason.replaceAll("_", " ")} ${number(count)}`);
    card.append(
      make("p", { class: "sub" }, `${plural(found.count, "picture")}: ${reasons.join(", ")}.`),
      make("table", { class: "wrap" }, make("thead", {}, head), make("tbody", {}, ...found.first.map((row) => make("tr", {}, make("td", {}, row.image_id), make("td", {}, row.stage), make("td", {}, row.reason.replaceAll("_", " ")))))),
    );
  }
  return section;
}

function categories(found, onCategory) {
  if (!found.length) return make("div", { class: "card" }, make("p", { class: "sub" }, "The catalogue names no categories."));
  const most = found[0].pictures;
  return make(
    "div",
    { class: "card" },
    make(
      "ul",
      { class: "bars" },
      ...found.map((each) =>
        make(
          "li",
          {},
          make(
            "button",
            { type: "button", onclick: () => onCategory(each.name), "aria-label": `${each.name}, ${plural(each.pictures, "picture")}: search in it` },
            make("span", { class: "name" }, each.name),
            draw("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, draw("rect", { width: (100 * each.pictures) / most, height: 8, rx: 2 })),
            make("span", { class: "count" }, number(each.pictures)),
          ),
        ),
      ),
    ),
  );
}
