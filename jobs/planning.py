"""Units of work, and the plan of a stream of them: what runs where, said before the start, refused when it cannot be."""

from dataclasses import dataclass

from cluster.errors import BadInputError

MODEL_MIB = 900  # of a model actor besides its pictures: Python, torch and the network's activations, measured
DECODER_MIB = 90  # of one decode process


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One range of rows, and the names of its files."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the unit, of its receipt and of its files."""
        return f"{self.index:05d}"


def cut(rows: int, part_rows: int) -> list[Unit]:
    """Cut rows 0..rows-1 into units of `part_rows`, from the count alone."""
    return [
        Unit(index=index, start=start, stop=min(start + part_rows, rows))
        for index, start in enumerate(range(0, rows, part_rows))
    ]


@dataclass(frozen=True, kw_only=True)
class Node:
    """What one node has for Ray."""

    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a stream wants: CPUs and GPUs of one model actor, most and fewest of them; the same of decode actors."""

    model_cpus: float
    model_gpus: float
    models: int
    models_min: int
    decode_cpus: float
    decoders: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Actors of a stream: how many start at once, and how many there may be."""

    models: int
    models_max: int
    decoders: int

    def line(self, *, parts: int, pictures: int, of: int, part_mib: float, in_flight: int, processes: int) -> str:
        """The plan for a person."""
        mib = self.models * (MODEL_MIB + in_flight * part_mib) + processes * DECODER_MIB
        where = f"{self.decoders} decode actor(s)" if self.decoders else "decoding beside the model"
        more = f" (up to {self.models_max} where there is room)" if self.models_max > self.models else ""
        return (
            f"plan: {parts} parts, {pictures} of {of} pictures; {self.models} model actor(s){more}, {where}, "
            f"{processes} decode process(es); these take about {mib / 1024:.1f} GiB at most"
        )


def fit(nodes: list[Node], ask: Ask, parts: int, *, scales: bool) -> Plan:
    """How many actors fit now, so that none starts late and none waits for ever.

    Args:
        nodes: the nodes that are alive.
        ask: what is wanted; `models` 0: one per GPU where they take GPUs, else one per CPU.
        parts: units of work; more actors than these are not started.
        scales: the cluster may add nodes: what does not fit now may fit later, so that unless `models` says otherwise only the
            parts bound how many there may be.

    Raises:
        BadInputError: one actor of a kind never fits.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    now = ask.models or max(1, int(gpus if ask.model_gpus else cpus))
    room, least = _room(nodes, ask), max(1, ask.models_min)
    most = max(least, min(parts, (ask.models or parts) if scales else now))
    if room < least and not scales:
        beside = f" beside {ask.decoders} decode actor(s) of {ask.decode_cpus:g} CPUs" if ask.decoders else ""
        raise BadInputError(
            f"{least} model actor(s) of {ask.model_cpus:g} CPUs and {ask.model_gpus:g} GPUs{beside} can never start: "
            f"this machine has {cpus:g} CPUs and {gpus:g} GPUs for Ray; lower --model-cpus, --model-gpus or --decode-actors"
        )
    most = most if scales else min(most, room)
    return Plan(models=max(least, min(most, room, now)), models_max=most, decoders=min(ask.decoders, parts))


def _room(nodes: list[Node], ask: Ask) -> int:
    """Model actors that fit beside the decode actors, which take the nodes without GPUs first."""
    left = [[node.cpus, node.gpus] for node in sorted(nodes, key=lambda node: (node.gpus, -node.cpus))]
    for _ in range(ask.decoders):
        node = next((node for node in left if node[0] >= ask.decode_cpus), None)
        if node is None:
            return 0
        node[0] -= ask.decode_cpus
    return sum(_fit(node[0], node[1], ask) for node in left)


def _fit(cpus: float, gpus: float, ask: Ask) -> int:
    counts = [have / each for have, each in ((cpus, ask.model_cpus), (gpus, ask.model_gpus)) if each]
    return int(min(counts) + 1e-9)
