"""Pictures of what was measured: recall against queries a second, where time goes, descriptors side by side."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

ENGINES = {"manet": "o-", "faiss": "s--"}


def frontier_png(sweep: Sequence[Mapping[str, Any]], rates: Sequence[Mapping[str, Any]]) -> bytes:
    """Recall@7 against queries a second of each engine as PNG: one point a setting, a line a refine, exact search at 1.

    Args:
        sweep: rows with nprobe, refine, and `NAME_recall@7` and `NAME_qps` of each engine.
        rates: rows with threads and, where it was measured, `flat_qps`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    depths = sorted({row["refine"] for row in sweep})
    for place, refine in enumerate(depths):
        for name, style in ENGINES.items():
            rows = sorted((row for row in sweep if row["refine"] == refine), key=lambda row: row["nprobe"])
            x, y = [row[f"{name}_recall@7"] for row in rows], [row[f"{name}_qps"] for row in rows]
            axes.plot(x, y, style, color=f"C{place}", label=f"{name}, refine {refine}", markersize=4)
            if name == "manet":
                for row in rows:
                    where = (row[f"{name}_recall@7"], row[f"{name}_qps"])
                    axes.annotate(f"{row['nprobe']}", where, textcoords="offset points", xytext=(4, 4), fontsize=7)
    flat = [row["flat_qps"] for row in rates if row["threads"] == 1 and "flat_qps" in row]
    if flat:
        axes.plot([1.0], [flat[0]], "k*", label="flat", markersize=9)
    axes.set(xlabel="recall@7 against exact search", ylabel="queries a second, batches of 100, 1 thread", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    return sink.getvalue()


def seconds_png(stages: Mapping[str, float]) -> bytes:
    """Where the time of one picture goes: seconds of each stage, summed over all workers, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    names = [name.removesuffix("_s").replace("_", " ") for name in stages]
    bars = axes.barh(names, [seconds * 1e3 for seconds in stages.values()])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds a picture, of one worker")
    axes.margins(x=0.12)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    return sink.getvalue()


def table_png(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """MAP@7 of the rows of a comparison with its 95% interval as PNG: one bar a row, a colour a network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots()
    networks = list(dict.fromkeys(row["network"] for row in rows))
    for network in networks:
        places = [at for at, row in enumerate(rows) if row["network"] == network]
        values = [rows[at]["map@7"] for at in places]
        errors = [
            [max(0.0, rows[at]["map@7"] - rows[at]["map@7_low"]) for at in places],
            [max(0.0, rows[at]["map@7_high"] - rows[at]["map@7"]) for at in places],
        ]
        axes.barh(places, values, xerr=errors, color=f"C{networks.index(network)}", label=network, alpha=0.8, capsize=2)
    axes.set_yticks(range(len(rows)), [f"{row['descriptor']} of {row['features']}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="MAP@7, exact search, 95% interval")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    return sink.getvalue()
