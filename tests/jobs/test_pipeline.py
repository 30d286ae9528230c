"""`manet pipeline`, small: every stage for real, the report, and the second run."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import BadInputError
from jobs.pipeline import Config, _stages
from jobs.report import table_lines
from manet.errors import InputError
from tests.conftest import Run
from tests.jobs.helpers import Done, assert_refused, scalars, summary_of

pytestmark = pytest.mark.timeout(900)
SMALL = (
    "--size", 96, "--set", "train.pseudo_masks=classical", "--set", "train.train_size=64", "--set", "train.epochs=1",
    "--set", "train.saliency_epochs=1", "--set", "report.shown=6", "--set", "compare.whiten=16",
    "--set", "train.region-weights=learned",  # of the second training: the first has no joint stage
    "--set", "train.saliency_weights=pip:efficientnet-lite0",  # of the first training: the second has --init
)  # fmt: skip


def _command(shop: Path, out: Path) -> tuple[object, ...]:
    return ("pipeline", "--catalog", shop / "catalog", "--queries", shop / "queries", "--out", out, *SMALL)


@pytest.fixture(scope="module")
def piped(manet: Run, shop: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The folder of a run, and how it went."""
    out = tmp_path_factory.mktemp("piped") / "run"
    return out, manet(*_command(shop, out), timeout=800)


def test_it_ends_with_a_table_and_the_report(piped: tuple[Path, Done]) -> None:
    out, done = piped
    summary = summary_of(done)
    assert list(summary["stage_seconds"]) == [
        "fewshot", "pretrained", "model", "descriptors", "index", "evaluation", "comparison", "report",
    ]  # fmt: skip
    assert 0 < summary["map@7"] <= 1
    last = done.stderr.splitlines()[-1]
    assert last == f"report: {out}/report/report.html"
    assert re.search(r"trained +attended +sr-mac", done.stderr)
    assert re.search(r"trained +attended +sr-mac-learned", done.stderr)
    table = json.loads((out / "comparison" / "table.json").read_text())
    groups = [group for group, _ in itertools.groupby(table, key=lambda row: (row["network"], row["features"]))]
    assert len(groups) == len(set(groups))
    assert re.search(r"MAP@7 .* whitened +SR-MAC ahead by", done.stderr)


def test_training_says_its_epochs(piped: tuple[Path, Done]) -> None:
    out, done = piped
    assert "stage saliency" in done.stderr
    assert "stage joint" in done.stderr
    history = json.loads((out / "model" / "metrics.json").read_text())["history"]
    assert [(row["epoch"], row["stage"]) for row in history] == [(0, "saliency"), (1, "joint")]
    assert all(0 < row["dice_loss"] < 1 for row in history)
    assert history[1]["cross_entropy"] > 0
    assert 0 < history[1]["val_map@7"] <= 1
    levels = [history[1][f"weight_of_level_{level}"] for level in (1, 2, 3)]
    assert sum(levels) == pytest.approx(3, abs=0.01)
    assert levels != [1, 1, 1]
    (events,) = (out / "model" / "checkpoints").glob("*/tensorboard/events*")  # of the joint stage's own run
    ((epoch, value),) = scalars(events)["joint/val_map_at_7"]
    assert epoch == 0  # of that run's own
    assert value == pytest.approx(history[1]["val_map@7"])
    config = json.loads((out / "model" / "config.json").read_text())
    assert config["network"]["pictures"]["size"] == 96
    assert len(config["categories"]) == config["network"]["classes"] > 10


def test_the_two_stages_train_what_they_should(piped: tuple[Path, Done]) -> None:
    """The saliency stage leaves the backbone alone, the joint stage moves both, but for their early layers."""
    import torch
    from safetensors.torch import load_file

    from manet.config import NetworkConfig
    from manet.network import InitialWeights, initial

    out, _ = piped
    lite = "pip:efficientnet-lite0"
    start = initial(NetworkConfig(), InitialWeights(backbone=lite, saliency=lite)).state_dict()
    pretrained, trained = (load_file(out / name / "model.safetensors") for name in ("pretrained", "model"))
    for name, value in start.items():
        if name.startswith("backbone"):
            assert torch.equal(pretrained[name], value), name
    for branch in ("backbone", "saliency"):
        early = re.compile(r"(backbone\.net|saliency\.encoder)\.(conv_stem|bn1|blocks\.[01])\.")
        weights = [name for name in start if name.startswith(branch) and name.endswith("weight")]
        assert all(torch.equal(trained[name], start[name]) for name in weights if early.match(name))
        weights = [name for name in weights if not early.match(name)]
        assert all(not torch.equal(trained[name], pretrained[name]) for name in weights)
    assert any(not torch.equal(pretrained[name], start[name]) for name in start if name.startswith("saliency"))


def test_the_second_run_only_looks(piped: tuple[Path, Done], manet: Run, shop: Path) -> None:
    out, first = piped
    page = (out / "report" / "report.html").read_bytes()
    again = manet(*_command(shop, out))
    assert summary_of(again)["map@7"] == summary_of(first)["map@7"]
    assert again.stderr.count("nothing to do") >= 8
    assert (out / "report" / "report.html").read_bytes() == page


class _Page(HTMLParser):
    """Collects addresses, pictures and text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.classes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [value for key in ("src", "href") if (value := found.get(key))]
        self.classes += (found.get("class") or "").split()

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_the_report_stands_alone(piped: tuple[Path, Done]) -> None:
    out, _ = piped
    page = _Page()
    page.feed((out / "report" / "report.html").read_text())
    assert len(page.addresses) >= 6 * 9  # a query, its saliency map, seven answers
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert "MAP@7" in " ".join(page.words)
    rows = json.loads((out / "comparison" / "table.json").read_text())
    assert {f"{row['whitened_map@7']:.3f}" for row in rows} <= set(page.words)
    assert {"hit", "best"} <= set(page.classes)
    assert page.words.count("reference") == 2  # SR-MAC itself, as it is and whitened
    words = " ".join(page.words)
    assert "+0.000" not in words and "-0.000" not in words
    for meaning in (
        "the highest MAP@7 of the table",
        "divided by all that are relevant",
        "(1 + S) * F",
        "drawn at random",
    ):
        assert meaning in words
    assert words.count("no text branch") == 1
    assert "#0b0c0d" not in (out / "report" / "report.html").read_text()


def test_the_report_wants_figures_at_7(piped: tuple[Path, Done], manet: Run, shop: Path, tmp_path: Path) -> None:
    run, _ = piped
    made = ("--queries", shop / "queries", "--index", run / "index")
    summary_of(manet("evaluate", *made, "--k", 10, "--out", tmp_path / "evaluation"))
    inputs = ("--catalog", shop / "catalog", "--model", run / "model", "--comparison", run / "comparison")
    done = manet("report", *made, *inputs, "--evaluation", tmp_path / "evaluation", "--out", tmp_path / "report")
    assert_refused(done, 2, "--evaluation", "made with --k 10", "evaluate with --k 7")
    assert not (tmp_path / "report").exists()


def test_differences_in_the_table() -> None:
    def row(network: str, descriptor: str, *behind: float) -> dict[str, Any]:
        names = {"network": network, "features": "attended", "descriptor": descriptor, "map@7": 0.5, "recall@1": 0.5}
        return names | dict(zip(("behind", "behind_low", "behind_high"), behind, strict=True))

    rows = [
        row("pretrained", "sr-mac", 0.0, 0.0, 0.0),
        row("trained", "r-mac", -0.0172, -0.0383, -0.0003),
        row("trained", "sr-mac", 0.0, 0.0, 0.0),
        row("trained", "gem", 0.2, 0.1, 0.3),
    ]
    wanted = ["0.000 (0.000 to 0.000)", "-0.017 (-0.038 to 0.000)", "reference", "+0.200 (+0.100 to +0.300)"]
    assert [line.split("0.500")[-1].strip() for line in table_lines(rows)[1:]] == wanted


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("index.recall-target=abc", "--set index: recall_target: Input should be a valid number"),
        ("report.shown=-1", "--set report: shown: "),
        ("extract.scales=1,many", "--set extract: scales.1: "),
        ("extract.decode-resource=decode", "--set extract: --decode-resource is booked by decode actors"),
    ],
)
def test_settings_of_every_stage_are_checked_before_the_first(setting: str, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        Config(catalog="x", queries="y", out="z", set=(setting,))


def test_a_flag_of_several_values_is_set_by_commas() -> None:
    config = Config(catalog="x", queries="y", out="z/", set=("extract.scales=1.0,0.5", "train.epochs=5"))
    stages = _stages(config)
    assert stages["descriptors"][1].scales == (1.0, 0.5)
    assert (stages["pretrained"][1].epochs, stages["model"][1].epochs) == (0, 5)
    assert list(stages)[-1] == "report"
    assert stages["index"][1].descriptors == stages["descriptors"][1].out == "z/descriptors"


def test_a_descriptor_that_the_model_will_not_have_is_refused_first() -> None:
    for name, lacking in (("sr-mac-learned", "learned weights"), ("sr-mac@no-text", "text branch")):
        with pytest.raises(InputError, match=f"descriptor {name}: the model has no {lacking}"):
            Config(catalog="x", queries="y", out="z", set=(f"extract.descriptor={name}",))
    learned = Config(catalog="x", queries="y", out="z", set=("extract.descriptor=gem", "train.region-weights=learned"))
    assert [_stages(learned)[name][1].region_weights for name in ("pretrained", "model")] == ["salient", "learned"]


def test_what_the_pipeline_decides_cannot_be_set(manet: Run) -> None:
    for setting in ("train.init=x", "extract.out=x", "train.size=32", "evaluate.k=10"):
        done = manet("pipeline", "--catalog", "x", "--queries", "y", "--out", "z", "--set", setting)
        assert_refused(done, 2, "--set", "the pipeline itself decides")
