"""`jobs.planning`: units from the rows alone; what fits, and what never does."""

import pytest

from cluster.errors import BadInputError
from jobs.planning import Ask, Node, Plan, cut, fit
from jobs.streaming import DescribeConfig


def _ask(**fields: float) -> Ask:
    given = {
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
    nodes = [Node(cpus=4, gpus=0), Node(cpus=2, gpus=0)]
    assert fit(nodes, _ask(), 100, scales=False).models == 6
    assert fit(nodes, _ask(), 3, scales=False).models == 3
    assert fit(nodes, _ask(models=2), 100, scales=False).models == 2
    assert fit(nodes, _ask(model_cpus=3), 100, scales=False).models == 1  # not two halves of one node


def test_decode_actors_come_first_and_leave_gpu_nodes_alone() -> None:
    nodes = [Node(cpus=4, gpus=1), Node(cpus=8, gpus=0)]
    plan = fit(nodes, _ask(model_cpus=4, model_gpus=1, decoders=16), 100, scales=False)
    assert (plan.models, plan.decoders) == (1, 16)
    with pytest.raises(BadInputError, match="17 decode actor"):
        fit(nodes, _ask(model_cpus=4, model_gpus=1, decoders=17), 100, scales=False)


def test_what_never_fits_is_refused_at_once_but_for_a_cluster_that_grows() -> None:
    nodes = [Node(cpus=2, gpus=0)]
    for ask in (_ask(model_gpus=1), _ask(model_cpus=3), _ask(models_min=3)):
        with pytest.raises(BadInputError, match=r"can never start.*--model-cpus"):
            fit(nodes, ask, 10, scales=False)
        assert fit(nodes, ask, 10, scales=True).models >= 1
    grown = fit(nodes, _ask(models=8), 10, scales=True)
    assert (grown.models, grown.models_max) == (2, 8)  # the others start when nodes come


def test_where_nodes_may_come_only_the_parts_bound_the_actors() -> None:
    one = [Node(cpus=4, gpus=1)]
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
