"""Grafana dashboards: each query asks for metrics that Ray or this project exports, and by labels that they have."""

import re
from collections.abc import Iterator
from typing import Any

from cluster.telemetry import exported

# Of Ray's own, those that the dashboard may ask for -> their labels; a test finds them on a running node.
_NODE = frozenset({"instance"})
RAYS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total", "ray_node_disk_free"), _NODE
    ),
    "ray_object_store_memory": frozenset({"Location"}),
    "ray_tasks": frozenset({"Name", "State"}),
}
# And those of nodes with a GPU and of the autoscaler (port 44217 of the head), which no test here can start.
UNSEEN: dict[str, frozenset[str]] = {
    "ray_node_gpus_utilization": frozenset({"GpuIndex", "instance"}),
    "autoscaler_active_nodes": frozenset({"NodeType"}),
    "autoscaler_pending_nodes": frozenset({"NodeType"}),
}
_WORDS = frozenset(
    {"sum", "by", "rate", "max", "min", "avg", "without", "increase", "clamp_min", "on", "ignoring", "group_left", "le"}
)


def faults(dashboard: dict[str, Any]) -> list[str]:
    """What is wrong with a dashboard, a line each."""
    return list(_faults(dashboard))


def queries(dashboard: dict[str, Any]) -> list[str]:
    """Every PromQL expression of a dashboard."""
    return [target.get("expr", "") for panel in dashboard["panels"] for target in panel.get("targets", [])]


def _faults(dashboard: dict[str, Any]) -> Iterator[str]:
    yield from (f"{name} is missing" for name in ("title", "uid", "schemaVersion", "time") if name not in dashboard)
    panels = dashboard["panels"]
    ids = [panel.get("id") for panel in panels]
    if len(set(ids)) != len(ids):
        yield "two panels have one id"
    known = {**exported(), **RAYS, **UNSEEN}
    for panel in panels:
        title = panel.get("title") or "without a title"
        if panel.get("type") == "row":
            continue
        if not panel.get("targets") or not panel.get("description"):
            yield f"panel {title}: it needs targets and a description: what is read off it"
        if {"h", "w", "x", "y"} - set(panel.get("gridPos", {})):
            yield f"panel {title}: gridPos needs h, w, x and y"
        if panel.get("datasource", {}).get("uid") != "${datasource}":
            yield f"panel {title}: datasource must be the variable ${{datasource}}: yours has another uid"
        for target in panel.get("targets", []):
            yield from (f"panel {title}: {fault}" for fault in _query(target.get("expr", ""), known))


def _query(expr: str, known: dict[str, frozenset[str]]) -> Iterator[str]:
    if expr.count("(") != expr.count(")") or expr.count("{") != expr.count("}") or not expr:
        yield f"query {expr!r}: brackets do not match"
    bare = re.sub(r'"[^"]*"|\$\w+|\$\{\w+\}|\[[^\]]*\]', "", expr)
    grouping = " ".join(re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", bare))
    matching = " ".join(re.findall(r"\{([^}]*)\}", bare))
    labels = set(re.findall(r"[A-Za-z_]\w*", f"{grouping} {matching}"))
    names = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\{[^}]*\}|\b(?:by|without|on)\s*\([^)]*\)", "", bare))) - _WORDS
    for name in sorted(names - set(known)):
        yield f"query names {name}, which nothing here exports"
    if not names:
        yield f"query {expr!r} names no metric"
    allowed = {label for name in names & set(known) for label in known[name]} | {"instance"}
    for label in sorted(labels - allowed):
        yield f"query uses the label {label}, which {', '.join(sorted(names))} has not"
