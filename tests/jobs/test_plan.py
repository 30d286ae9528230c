"""`manet plan`: the closed form against hand-made sums, the simulation against the closed form, refusals of one line."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import yaml

from cluster.errors import BadInputError
from jobs.cli import parse
from jobs.costing import read_prices
from jobs.estimating import Pool, Step, Stream, enough_nodes, estimate
from jobs.plan import Config, run
from jobs.rates import CoordinationRate, DecodeRate, IndexRate, ModelRate, Origin, Rates, add_rates, read_rates
from jobs.simulating import Chance, play
from tests.conftest import ROOT, Run
from tests.jobs.helpers import assert_refused, summary_of

ORIGIN = Origin(command="manet bench", date="2026-11-26", commit="abcdef0123", hardware="2 CPUs")
GIVEN = ("--model-rate", 100, "--decode-rate", 50, "--picture-bytes", 1000, "--actor-start", 10)


def _line(*seconds: float, shared: bool = False) -> tuple[Step, ...]:
    return tuple(Step(name=f"s{at}", seconds=each, shared=shared) for at, each in enumerate(seconds))


def _stream(parts: int, *pools: Pool, **fields: float) -> Stream:
    return Stream(parts=parts, pools=pools, **fields)  # type: ignore[arg-type]


ONE = Pool(name="a", nodes=1, actors=1, steps=_line(2, 3, 1))
CASES = [
    (_stream(10, ONE), 6 + 9 * 3),  # fill the line, then one part each 3 s
    (_stream(10, ONE, in_flight=1), 10 * 6),  # one part at a time
    (_stream(1, ONE), 6),
    (_stream(10, replace(ONE, nodes=2, start_s=7, actor_start_s=3)), 7 + 3 + 6 + 4 * 3),
    (_stream(11, replace(ONE, nodes=2, actors=2)), 6 + 2 * 3),  # 3 rounds of 4 actors, the last not full
    (_stream(5, ONE, dispatch_s=4.0), 4 + 6 + 4 * 4),  # the driver is slower than the actor
    (
        _stream(8, Pool(name="d", nodes=1, actors=1, steps=_line(4)), replace(ONE, steps=_line(1)), buffer=2),
        4 + 1 + 7 * 4,
    ),
    (
        _stream(8, Pool(name="d", nodes=4, actors=1, steps=_line(4)), replace(ONE, steps=_line(9, 1)), buffer=2),
        14 + 7 * 9,
    ),
]


@pytest.mark.parametrize(("stream", "seconds"), CASES)
def test_the_closed_form_is_the_sum_by_hand(stream: Stream, seconds: float) -> None:
    assert estimate(stream).seconds == pytest.approx(seconds)


@pytest.mark.parametrize("stream", [stream for stream, _ in CASES])
def test_the_simulation_without_chance_is_the_closed_form(stream: Stream) -> None:
    assert play(stream, Chance()).seconds == pytest.approx(estimate(stream).seconds)


def test_shared_cores_bound_a_node() -> None:
    pool = Pool(name="a", nodes=1, actors=4, cores=2, steps=_line(1, 3, shared=True), actor_start_s=5)
    stream = _stream(400, pool)
    assert pool.ready_s == 2 * 5  # two actors start, then the other two
    assert pool.cycle_s(3) == 4 * 4 / 2  # four actors want 4 s of a core for each part, two cores have it
    assert estimate(stream).limit == "s0 + s1 (a)"
    assert play(stream, Chance()).seconds == pytest.approx(estimate(stream).seconds, rel=0.02)


def test_losses_and_slow_nodes_by_hand_and_by_simulation() -> None:
    pool = Pool(name="a", nodes=8, actors=1, steps=_line(2, 4, 1), start_s=100, losses_per_s=1 / 1000)
    assert pool.kept(3) == pytest.approx((1 - (4 / 2 + 1) / 1000) / (1 + 100 / 1000))
    stream = _stream(20_000, pool, slow_share=0.25, slow_factor=2.0)
    assert estimate(stream).rate == pytest.approx(8 / 4 * (0.75 + 0.25 / 2) * pool.kept(3))
    runs = [play(stream, Chance(seed=seed, step_cv=0.2, start_cv=0.2)) for seed in range(6)]
    mean = sum(each.seconds for each in runs) / len(runs)
    assert mean == pytest.approx(estimate(stream).seconds, rel=0.05)
    assert all(each.losses > 10 and each.redone > 10 for each in runs)


def test_two_pools_lose_nodes_and_nothing_is_lost() -> None:
    decoders = Pool(name="d", nodes=3, actors=4, steps=_line(6), start_s=50, losses_per_s=1 / 300)
    models = Pool(name="m", nodes=4, actors=1, steps=_line(0.5, 2, 0.2), start_s=80, losses_per_s=1 / 300)
    stream = _stream(3000, decoders, models, buffer=8)
    for seed in range(3):
        played = play(stream, Chance(seed=seed, step_cv=0.3))
        assert played.losses > 10
        assert estimate(stream).seconds * 0.85 < played.seconds < estimate(stream).seconds * 1.25


def test_a_seed_decides_a_run() -> None:
    pool = Pool(name="a", nodes=4, actors=2, steps=_line(2, 3, 1), start_s=60, losses_per_s=1 / 500)
    stream = _stream(500, pool, slow_share=0.2, slow_factor=3.0)
    one, again, other = (play(stream, Chance(seed=seed, step_cv=0.2)) for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_nodes_that_are_lost_before_they_work_end_the_simulation() -> None:
    pool = Pool(name="a", nodes=1, actors=1, steps=_line(10.0), losses_per_s=10.0)
    with pytest.raises(ValueError, match="nothing"):
        estimate(_stream(10, pool))


def test_enough_nodes_carry_what_the_others_do() -> None:
    decoders = Pool(name="d", nodes=16, actors=16, steps=_line(4))
    models = Pool(name="m", nodes=8, actors=1, steps=_line(0.5, 1))
    stream = _stream(1000, decoders, models, buffer=16)
    assert estimate(stream).limit == "s1 (m)"
    assert enough_nodes(stream, "d") == 2  # 8 parts a second, 4 a node
    assert enough_nodes(stream, "m") == 64


def _rates(path: Path) -> Path:
    model = ModelRate(origin=ORIGIN, device="cpu", size=480, pictures_per_s=2, descriptor_bytes=2600, start_s=8)
    add_rates(str(path), Rates(models={"cpu": model}))
    add_rates(str(path), Rates(decode=DecodeRate(origin=ORIGIN, size=480, pictures_per_cpu_s=100, picture_bytes=1e5)))
    add_rates(str(path), Rates(coordination=CoordinationRate(origin=ORIGIN, actors=64, parts_per_s=50)))
    index = IndexRate(
        origin=ORIGIN,
        rows=500_000,
        dim=1280,
        cells=2048,
        train_cpu_s=40,
        fill_cpu_s=60,
        stored_bytes=2700,
        resident_bytes=77,
    )
    add_rates(str(path), Rates(index=index))
    return path


def test_rates_come_together_in_one_file(tmp_path: Path) -> None:
    path = _rates(tmp_path / "rates.json")
    faster = ModelRate(origin=ORIGIN, device="NVIDIA L4", size=480, pictures_per_s=9, descriptor_bytes=2600, start_s=8)
    add_rates(str(path), Rates(models={"NVIDIA L4": faster}))
    found = read_rates(str(path), "--rates")
    assert sorted(found.models) == ["NVIDIA L4", "cpu"]
    assert found.decode is not None
    assert found.coordination is not None
    path.write_text(yaml.safe_dump(json.loads(path.read_text())))
    assert read_rates(str(path), "--rates") == found


def test_a_plan_tells_with_what_the_model_was_measured(tmp_path: Path) -> None:
    path = str(_rates(tmp_path / "rates.json"))
    half = ModelRate(
        origin=ORIGIN, device="cpu", size=480, pictures_per_s=2, descriptor_bytes=2600, start_s=8,
        precision="bfloat16", model_cpus=0.5,
    )  # fmt: skip
    add_rates(path, Rates(models={"cpu": half}))

    def notes(**given: float) -> str:
        plan = run(Config(pictures=9, nodes=("decode=1",), rates=path, **given))  # type: ignore[arg-type]
        return "\n".join(plan["assumptions"])

    assert "extract is given --model-cpus 1 --precision bfloat16" in notes(model_cpus=1)
    assert "the model was measured with --model-cpus 0.5, not 1" in notes(model_cpus=1)
    assert "measured with" not in notes(model_cpus=0.5)
    assert "measured with" not in notes(model_cpus=1, model_rate=3)
    assert "--precision" not in notes(model_cpus=1, model_rate=3)


def test_a_plan_by_hand(tmp_path: Path) -> None:
    """Two CPU nodes of 16: 256 rows take 2.56 s to decode and 128 s to describe, of a core; 32 actors."""
    rates = str(_rates(tmp_path / "rates.json"))
    plan = run(Config(pictures=500_000, nodes=("decode=2",), rates=rates, model_cpus=1))
    on_demand = _prices(tmp_path / "p.yaml", spot=False)
    calm = run(Config(pictures=500_000, nodes=("decode=2",), rates=rates, prices=str(on_demand), model_cpus=1))
    part_s, rounds = 130.56, -(-1954 // 32)
    write_s = 256 * 2600 * 16 / (6.25 * 125e6)
    extract_s = 180 + 8 + part_s + write_s + (rounds - 1) * part_s
    index_s = 40 / 16 + 60 / 32  # as many rows and cells as were measured
    assert calm["hours"] == {
        "extract": round(extract_s / 3600, 3),
        "index": round(index_s / 3600, 3),
        "total": round((extract_s + index_s) / 3600, 3),
    }
    assert calm["cost"]["nodes"] == pytest.approx(2 * 0.68 * (extract_s + index_s + 300) / 3600, abs=0.01)
    assert calm["cost"]["requests"] == pytest.approx(
        0.0004 * (500_000 + 2 * 1954) / 1000 + 0.005 * 2 * 1954 / 1000, abs=0.005
    )
    assert calm["storage_gib"]["gallery"] == pytest.approx(500_000 * 1e5 / 2**30, abs=0.01)
    assert calm["index_memory_gib"] == pytest.approx(500_000 * 77 / 2**30, abs=0.01)
    assert calm["bottleneck"] == "decode + model (decode)"
    assert calm["groups"][0]["doubled_hours"] < 0.6 * calm["hours"]["total"]
    assert plan["hours"]["extract"] > calm["hours"]["extract"]  # spot nodes are lost
    assert plan["cost"]["nodes"] < calm["cost"]["nodes"]
    assert sum("ASSUMPTION" in note for note in plan["assumptions"]) == 2  # the CPUs and the price table
    assert any("abcdef0" in note for note in plan["assumptions"])
    assert "extract is given --model-cpus 1" in plan["assumptions"]
    both = run(Config(pictures=500_000, nodes=("decode=2", "gpu=1"), rates=rates, model_rate=400, actor_start=9))
    flags = "--model-gpus 1 --decode-actors 32 --decode-cpus 1 --decode-resource decode"
    assert f"extract is given {flags}" in both["assumptions"]


def _prices(path: Path, *, spot: bool) -> Path:
    table = yaml.safe_load((ROOT / "cluster/prices.yaml").read_text())
    for group in table["groups"].values():
        group["spot"] = spot
    path.write_text(yaml.safe_dump(table))
    return path


def test_the_example_table_has_the_node_types_of_the_cluster_file() -> None:
    nodes = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["available_node_types"]
    prices = read_prices("")
    known = {group.instance: (group.cpus, group.gpus) for group in prices.groups.values()}
    for name, node in nodes.items():
        instance, resources = node["node_config"]["InstanceType"], node["resources"]
        if resources.get("CPU", 0) == 0:
            assert instance == prices.head.instance, name
        else:
            assert known[instance] == (resources["CPU"], resources.get("GPU", 0)), name
            assert resources.get(name, 0) == (0 if "GPU" in resources else resources["CPU"])  # for --decode-resource


def test_the_documented_plans_go_through_with_the_rates_of_a_machine_without_gpus(tmp_path: Path) -> None:
    rates = str(_rates(tmp_path / "rates.json"))
    texts = (ROOT / "README.md").read_text() + (ROOT / "jobs" / "plan.py").read_text()
    lines = re.findall(r"(?m)^ *manet (plan .*)$", texts)
    assert len(lines) == 3
    for line in lines:
        _, config = parse(line.split())
        assert run(cast(Config, config).model_copy(update={"rates": rates, "simulate": 0}))["kind"] == "plan"


def test_a_rate_that_nobody_measured_is_refused_or_marked(manet: Run, tmp_path: Path) -> None:
    rates = _rates(tmp_path / "rates.json")
    plan = ("plan", "--pictures", 1_000_000, "--nodes", "gpu=8", "--nodes", "decode=4")
    refused = manet(*plan, "--rates", rates)
    assert_refused(refused, 2, "nobody measured", "NVIDIA L4", "--model-rate")
    said = " ".join(refused.stderr.split())
    hint = said.partition("on such a node: manet ")[2].partition(", or give")[0]
    assert hint == "bench extract --catalog CATALOG --model MODEL --model-gpus 1 --model-cpus 16 --rates FILE"
    assert parse(hint.split())[0] == ["bench", "extract"]
    done = manet(*plan, "--rates", rates, "--model-rate", 400, "--actor-start", 20, "--simulate", 3)
    found = summary_of(done)
    assert any("400: ASSUMPTION, given by --model-rate" in note for note in found["assumptions"])
    assert "ASSUMPTION, given by --model-rate" in done.stderr
    assert abs(found["simulated"]["closed_form_error"]) < 0.1
    assert found["moved_gib"]["pixels between nodes"] == pytest.approx(1e6 * 3 * 480**2 / 2**30, abs=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("currency: USD\n", ["as_of", "Field required"]),
        ("groups: [", ["not YAML"]),
        ("currency: USD\ncurrency: EUR\n", ["line 2, column 1", "currency stands there twice"]),
        ("- a\n", ["prices.yaml"]),
    ],
)
def test_a_bad_price_table_is_one_line(change: str, words: list[str], manet: Run, tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(change)
    done = manet("plan", "--pictures", 10, "--nodes", "decode=1", *GIVEN, "--prices", path)
    assert_refused(done, 2, "--prices", *words)


def test_bad_flags_and_files_are_one_line(tmp_path: Path) -> None:
    given = {"model_rate": 1.0, "decode_rate": 1.0, "picture_bytes": 1.0, "actor_start": 1.0}
    table = _prices(tmp_path / "p.yaml", spot=True)
    cases: list[tuple[dict[str, object], str]] = [
        ({"nodes": ("lathe=2",)}, "groups decode, gpu"),
        ({"nodes": ("decode=many",)}, "GROUP=COUNT"),
        ({"nodes": ()}, "--nodes is required"),
        ({"nodes": ("gpu=2", "gpu=3")}, "the group gpu is given twice"),
        ({"nodes": ("decode=1",), "prices": str(tmp_path / "none.yaml")}, "no such file"),
        ({"nodes": ("decode=1",), "rates": str(tmp_path / "none.json")}, "no such file"),
        ({"nodes": ("decode=1",), "rates": str(table)}, "Extra inputs"),
        ({"nodes": ("decode=1",), "model_cpus": 99.0}, "--model-cpus 99"),
    ]
    for fields, words in cases:
        with pytest.raises(BadInputError, match=words):
            run(Config.model_validate({"pictures": 10, **given, **fields}))
    group = yaml.safe_load(table.read_text())
    group["groups"]["decode"]["losses_per_hour"] = 1e6
    table.write_text(yaml.safe_dump(group))
    with pytest.raises(BadInputError, match=r"decode does nothing.*losses_per_hour"):
        run(Config.model_validate({"pictures": 10, **given, "nodes": ("decode=1",), "prices": str(table)}))
    del group["groups"]["decode"]["spot_per_hour"]
    table.write_text(yaml.safe_dump(group))
    with pytest.raises(BadInputError, match=r"groups.decode: spot without spot_per_hour"):
        read_prices(str(table))


def test_the_sleeping_actors_keep_the_ideal_rate_when_there_are_few(manet: Run, tmp_path: Path) -> None:
    flags = ("--actors", 2, "--rate", 40, "--part-rows", 32, "--seconds", 8, "--rates", tmp_path / "rates.json")
    found = summary_of(manet("bench", "coordination", *flags))
    (row,) = found["table"]
    assert row["ideal_pictures_per_s"] == 80
    assert 0.5 < row["kept"] < 1.1
    assert (tmp_path / "rates.json").exists() == (
        row["kept"] < 0.9
    )  # else the actors were the limit: nothing is known of the stream
