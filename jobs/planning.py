"""Units of work, and the plan of a stream of them: what runs where, said before the start, refused when it cannot be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import BadInputError
from cluster.session import fits

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
class Ask:
    """What a stream wants: CPUs and GPUs of one model actor, most and fewest of them; the same of decode actors.

    Of a `decode_resource`, where one is named, a decode actor books as much as CPUs.
    """

    model_cpus: float
    model_gpus: float
    models: int
    models_min: int
    decode_cpus: float
    decoders: int
    decode_resource: str = ""

    @property
    def model(self) -> dict[str, float]:
        """What one model actor books."""
        return {"CPU": self.model_cpus, "GPU": self.model_gpus}

    @property
    def decoder(self) -> dict[str, float]:
        """What one decode actor books."""
        return {name: self.decode_cpus for name in ("CPU", self.decode_resource) if name}


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


def fit(nodes: Sequence[Mapping[str, float]], ask: Ask, parts: int, *, scales: bool) -> Plan:
    """How many actors fit now, so that none starts late and none waits for ever.

    Args:
        nodes: what each node that is alive has for Ray.
        ask: what is wanted; `models` 0: one per GPU where they take GPUs, else one per CPU.
        parts: units of work; more actors than these are not started.
        scales: the cluster may add nodes: what does not fit now may fit later, so that unless `models` says otherwise only the
            parts bound how many there may be.

    Raises:
        BadInputError: one actor of a kind never fits.
    """
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    now = ask.models or max(1, int(gpus if ask.model_gpus else cpus))
    room, least = _room(nodes, ask), max(1, ask.models_min)
    most = max(least, min(parts, (ask.models or parts) if scales else now))
    if room < least and not scales:
        named = f" and {ask.decode_cpus:g} {ask.decode_resource!r}" if ask.decode_resource else ""
        beside = f" beside {ask.decoders} decode actor(s) of {ask.decode_cpus:g} CPUs{named}" if ask.decoders else ""
        raise BadInputError(
            f"{least} model actor(s) of {ask.model_cpus:g} CPUs and {ask.model_gpus:g} GPUs{beside} can never start: "
            f"this machine has {cpus:g} CPUs and {gpus:g} GPUs for Ray; lower --model-cpus, --model-gpus or --decode-actors"
        )
    most = most if scales else min(most, room)
    return Plan(models=max(least, min(most, room, now)), models_max=most, decoders=min(ask.decoders, parts))


def _room(nodes: Sequence[Mapping[str, float]], ask: Ask) -> int:
    """Model actors that fit beside the decode actors, were these on the nodes without GPUs first.

    Ray itself spreads them over all nodes: only with a `decode_resource` are they sure to leave a GPU's CPUs to its model.
    """
    left = [dict(node) for node in sorted(nodes, key=lambda node: (node.get("GPU", 0), -node.get("CPU", 0)))]
    for _ in range(ask.decoders):
        node = next((node for node in left if fits(node, ask.decoder)), None)
        if node is None:
            return 0
        for name, booked in ask.decoder.items():
            node[name] -= booked
    return sum(fits(node, ask.model) for node in left)
