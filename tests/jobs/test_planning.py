"""`jobs.planning`: units from the rows alone; what fits, and what never does."""

import multiprocessing
import os
import secrets
from typing import Any, cast

import pytest

from cluster.errors import BadInputError
from cluster.session import MIB, ray_session, require_resources
from jobs.config import deciding
from jobs.planning import Ask, Plan, cut, fit
from jobs.streaming import DescribeConfig, flow, plan_of


def _node(cpus: float, gpus: float = 0, **more: float) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus, **more}


def _ask(**fields: float | str) -> Ask:
    given: dict[str, float | str] = {
        "model_cpus": 1,
        "model_gpus": 0,
        "models": 0,
        "models_min": 0,
        "decode_cpus": 0.5,
        "decoders": 0,
        **fields,
    }
    return Ask(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "part", "sizes"), [(1, 4, [1]), (4, 4, [4]), (5, 4, [4, 1]), (8, 4, [4, 4])])
def test_units(rows: int, part: int, sizes: list[int]) -> None:
    units = cut(rows, part)
    assert [unit.stop - unit.start for unit in units] == sizes
    assert [unit.name for unit in units] == [f"{index:05d}" for index in range(len(sizes))]
    assert units[0].start == 0
    assert units[-1].stop == rows


def test_one_actor_a_cpu_and_no_more_than_parts() -> None:
    nodes = [_node(4), _node(2)]
    assert fit(nodes, _ask(), 100, scales=False).models == 6
    assert fit(nodes, _ask(), 3, scales=False).models == 3
    assert fit(nodes, _ask(models=2), 100, scales=False).models == 2
    assert fit(nodes, _ask(model_cpus=3), 100, scales=False).models == 1  # not two halves of one node


def test_decode_actors_come_first_and_leave_gpu_nodes_alone() -> None:
    nodes = [_node(4, 1), _node(8)]
    plan = fit(nodes, _ask(model_cpus=4, model_gpus=1, decoders=16), 100, scales=False)
    assert (plan.models, plan.decoders) == (1, 16)
    with pytest.raises(BadInputError, match="17 decode actor"):
        fit(nodes, _ask(model_cpus=4, model_gpus=1, decoders=17), 100, scales=False)


def test_decode_actors_run_where_their_resource_is() -> None:
    ask = _ask(model_cpus=1, model_gpus=1, decode_cpus=1, decoders=4, decode_resource="decode")
    assert fit([_node(4, 1), _node(4, 0, decode=4)], ask, 100, scales=False).models == 1
    for nodes in ([_node(8, 1)], [_node(8, 1), _node(8, 0, decode=3)]):
        with pytest.raises(BadInputError, match=r"4 decode actor.* of 1 CPUs and 1 'decode'"):
            fit(nodes, ask, 100, scales=False)


class _Where:
    """An actor that says on which node it runs."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        return {**row, self._name: ray.get_runtime_context().get_node_id()}


def _flow_on_two_kinds_of_nodes() -> None:
    """In a process of its own, as Ray keeps the first token that it saw in one. A head without CPUs, a node with a GPU and one
    CPU, a node with two CPUs and as much `decode`.
    """
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    memory: dict[str, Any] = {"object_store_memory": 100 * MIB}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    try:
        made.add_node(num_cpus=1, num_gpus=1, **memory)
        made.add_node(num_cpus=2, resources={"decode": 2}, **memory)
        config = DescribeConfig(
            ray_address=made.address, model_gpus=1, model_cpus=1, decode_actors=2, decode_cpus=1, decode_resource="decode",
        )  # fmt: skip
        units = cut(8, 1)
        with ray_session(config):
            require_resources(cpus=1, gpus=1, spare_cpus=1, spare_resource="decode", flags="")
            plan = plan_of(config, len(units))
            assert (plan.models, plan.decoders) == (1, 2)
            fetch, describe = cast(Any, (_Where, ("decoder",))), cast(Any, (_Where, ("model",)))
            rows = list(flow(units, plan, config, fetch=fetch, describe=describe))
        assert len(rows) == 8
        assert not {row["decoder"] for row in rows} & {row["model"] for row in rows}
    finally:
        made.shutdown()


def test_decode_actors_leave_the_cpus_of_a_gpu_to_its_model() -> None:
    """Without their resource one of the two would take the GPU node's one CPU, and no model actor could start."""
    process = multiprocessing.get_context("spawn").Process(target=_flow_on_two_kinds_of_nodes)
    process.start()
    process.join(200)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0


def test_where_decode_actors_run_does_not_decide_the_result() -> None:
    assert "decode_resource" not in deciding(DescribeConfig, skip=())
    with pytest.raises(ValueError, match="give --decode-actors too"):
        DescribeConfig(decode_resource="decode")
    with pytest.raises(ValueError, match="name a custom resource"):
        DescribeConfig(decode_resource="CPU", decode_actors=1)


def test_what_never_fits_is_refused_at_once_but_for_a_cluster_that_grows() -> None:
    nodes = [_node(2)]
    for ask in (_ask(model_gpus=1), _ask(model_cpus=3), _ask(models_min=3)):
        with pytest.raises(BadInputError, match=r"can never start.*--model-cpus"):
            fit(nodes, ask, 10, scales=False)
        assert fit(nodes, ask, 10, scales=True).models >= 1
    grown = fit(nodes, _ask(models=8), 10, scales=True)
    assert (grown.models, grown.models_max) == (2, 8)  # the others start when nodes come


def test_where_nodes_may_come_only_the_parts_bound_the_actors() -> None:
    one = [_node(4, 1)]
    gpus = _ask(model_gpus=1)
    assert fit(one, gpus, 100, scales=False) == Plan(models=1, models_max=1, decoders=0)
    assert fit(one, gpus, 100, scales=True) == Plan(models=1, models_max=100, decoders=0)
    assert fit([], gpus, 7, scales=True) == Plan(models=1, models_max=7, decoders=0)
    assert fit(one, _ask(model_gpus=1, models=8), 100, scales=True) == Plan(models=1, models_max=8, decoders=0)
    assert fit(one, _ask(model_gpus=1, models_min=3), 2, scales=True) == Plan(models=3, models_max=3, decoders=0)
    assert fit(one, _ask(model_cpus=0.5), 100, scales=True) == Plan(models=4, models_max=100, decoders=0)  # one a CPU
    line = fit(one, gpus, 100, scales=True).line(parts=100, pictures=100, of=100, part_mib=0, in_flight=3, processes=4)
    assert "1 model actor(s) (up to 100 where there is room)" in line
    assert "about 1.2 GiB" in line  # of those that start


def test_a_model_computes_on_what_is_booked_unless_it_is_told() -> None:
    assert DescribeConfig().computes_on == "cpu"
    assert DescribeConfig(model_gpus=0.5).computes_on == "cuda"
    assert DescribeConfig(model_gpus=1, device="cpu").computes_on == "cpu"
