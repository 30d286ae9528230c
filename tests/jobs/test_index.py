"""`manet index`, `search`, `evaluate` and `compare` over one gallery."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.artifact import Input, Manifest, open_artifact
from jobs.compare import ATTENDED, BOLTED_ON, PLAIN, _beside, learned_otherwise
from jobs.inputs import local_copy
from jobs.querying import answer_row, open_index, open_searcher, query_spec, read_all
from jobs.tuning import TuningConfig, open_queries
from manet.checkpoint import load_model, save_model
from manet.config import NetworkConfig
from manet.describe import Describer
from manet.images import decode
from manet.metrics import retrieval_metrics
from manet.network import MANet
from tests.conftest import Run, commit
from tests.jobs.helpers import assert_refused, checksums, summary_of

STOCK = """
import json, sys
import faiss, numpy as np, pyarrow.parquet as pq
index = faiss.read_index(sys.argv[1] + ".faiss")
vectors = np.load(sys.argv[1] + ".refine.npy", mmap_mode="r")
ids = pq.read_table(sys.argv[1] + ".ids.parquet")["image_id"]
assert not {"ray", "manet", "jobs", "cluster", "torch"} & set(sys.modules)
_, rows = index.search(np.asarray(vectors[:3], np.float32), 1)
print(json.dumps([index.ntotal, len(vectors), len(ids), rows[:, 0].tolist()]))
"""


@pytest.fixture(scope="module")
def descriptors(manet: Run, shop: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Descriptors of the shop, in parts of 32."""
    out = tmp_path_factory.mktemp("gallery") / "descriptors"
    summary_of(manet("extract", "--catalog", shop / "catalog", "--model", model, "--out", out, "--part-rows", 32))
    return out


@pytest.fixture(scope="module")
def index(manet: Run, descriptors: Path) -> Path:
    """An index of two shards or more."""
    out = descriptors.parent / "index"
    done = manet("index", "--descriptors", descriptors, "--out", out, "--shard-rows", 40)
    assert summary_of(done)["shards"] >= 2
    return out


def test_stock_faiss_opens_a_shard(index: Path) -> None:
    for shard in sorted(index.glob("shard-*.faiss")):
        command = [sys.executable, "-c", STOCK, str(shard.with_suffix(""))]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
        assert found[0] == found[1] == found[2] > 0
        assert found[3] == [0, 1, 2]


def test_a_small_gallery_is_flat_and_says_why(index: Path) -> None:
    report = json.loads((index / "report.json").read_text())
    assert report["factory"] == "Flat"
    assert "exact" in report["reason"]


def test_a_quantized_index_is_the_same_twice(manet: Run, descriptors: Path, tmp_path: Path) -> None:
    command = ("index", "--descriptors", descriptors, "--factory", "IVF4,PQ16x4", "--shard-rows", 40, "--out")
    summary_of(manet(*command, tmp_path / "one"))
    summary_of(manet(*command, tmp_path / "two", "--ray-cpus", 1))
    assert checksums(tmp_path / "one", "index") == checksums(tmp_path / "two", "index")
    refused = manet("index", "--descriptors", descriptors, "--factory", "IVFx", "--out", tmp_path / "three")
    assert_refused(refused, 2, "--factory IVFx: faiss: could not parse index string IVFx")


def test_search_finds_each_gallery_picture(manet: Run, index: Path, shop: Path, tmp_path: Path) -> None:
    pictures = sorted((shop / "catalog" / "images").rglob("*.jpg"))[:3]
    (tmp_path / "broken.jpg").write_text("no picture")
    flags = [flag for path in [*pictures, tmp_path / "broken.jpg"] for flag in ("--picture", path)]
    done = manet("search", "--index", index, *flags)
    assert summary_of(done)["failed"] == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for path, line in zip(pictures, lines, strict=False):
        assert line["results"][0]["image_id"] == path.stem
        assert line["results"][0]["score"] == pytest.approx(1, abs=2e-3)
        assert len(line["results"]) == 7
        assert line["results"][0]["uri"].endswith(path.name)
        assert line["results"][0]["description"]
    assert "not_a_picture" in lines[3]["error"]
    nothing = manet("search", "--index", index, "--picture", tmp_path / "broken.jpg")
    assert nothing.returncode == 2
    assert "none of the 1 could be used" in nothing.stderr


def test_search_among_some_pictures_only(manet: Run, index: Path, shop: Path, tmp_path: Path) -> None:
    pictures = sorted((shop / "catalog" / "images").rglob("*.jpg"))[:5]
    (tmp_path / "ids.txt").write_text("\n".join(path.stem for path in pictures[1:]))
    done = manet("search", "--index", index, "--picture", pictures[0], "--ids", tmp_path / "ids.txt")
    summary_of(done)
    results = json.loads(done.stdout.splitlines()[0])["results"]
    assert {result["image_id"] for result in results} == {path.stem for path in pictures[1:]}
    (tmp_path / "other.txt").write_text("of-another-shop")
    refused = manet("search", "--index", index, "--picture", pictures[0], "--ids", tmp_path / "other.txt")
    assert_refused(refused, 2, "--ids", "no picture of", "passes the filter")
    table = ("--queries", shop / "queries", "--out", tmp_path / "out")
    refused = manet("search", "--index", index, *table, "--ids", tmp_path / "other.txt")
    assert_refused(refused, 2, "--ids", "no picture of", "passes the filter")
    assert not (tmp_path / "out").exists()
    refused = manet("search", "--index", index, "--picture", pictures[0], "--ids", tmp_path / "none.txt")
    assert_refused(refused, 2, "--ids", "no such text file")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    refused = manet("search", "--index", index, "--picture", pictures[0], "--ids", tmp_path / "binary.txt")
    assert_refused(refused, 2, "--ids", "no UTF-8 text")
    refused = manet("search", "--index", index, "--picture", pictures[0], "--ids", tmp_path)
    assert_refused(refused, 2, "--ids", "a folder, and a file is wanted")
    assert_refused(manet("index", "ad", "--index", index), 2, "index has no command 'ad'; it has add, delete")


def test_evaluate(manet: Run, index: Path, shop: Path, tmp_path: Path) -> None:
    done = manet("evaluate", "--index", index, "--queries", shop / "queries", "--out", tmp_path / "evaluation")
    summary = summary_of(done)
    rankings = pq.read_table(tmp_path / "evaluation" / "rankings.parquet")
    queries = pq.read_table(next((shop / "queries").glob("queries-*.parquet")))
    relevant = dict(zip(queries["query_id"].to_pylist(), queries["relevant"].to_pylist(), strict=True))
    ranked = dict(zip(rankings["query_id"].to_pylist(), rankings["ranked"].to_pylist(), strict=True))
    assert ranked.keys() == relevant.keys()
    wanted = retrieval_metrics(ranked, relevant)
    assert {key: summary[key] for key in wanted} == wanted
    assert summary["map@7"] > 0.1  # chance is below 0.05
    described = tmp_path / "evaluation" / "query-descriptors"
    assert summary_of(manet("verify", described, "--sample", 3))["same_bits"] == 3
    queries_of = open_queries(TuningConfig(queries=str(described)))
    assert queries_of is not None and queries_of.spec == query_spec(open_index(str(index)))


def test_a_table_is_searched_as_its_pictures_are(manet: Run, index: Path, shop: Path, tmp_path: Path) -> None:
    pictures = sorted((shop / "catalog" / "images").rglob("*.jpg"))[:5]
    (tmp_path / "broken.jpg").write_text("no picture")
    paths = [*pictures, tmp_path / "broken.jpg"]
    table = pa.table({"query_id": [path.stem for path in paths], "uri": [str(path) for path in paths]})
    pq.write_table(table, tmp_path / "table.parquet")
    (tmp_path / "ids.txt").write_text("\n".join(path.stem for path in pictures[1:]))
    flags = ("--index", index, "--ids", tmp_path / "ids.txt", "--k", 3)
    many = ("search", *flags, "--queries", tmp_path / "table.parquet", "--out", tmp_path / "out", "--part-rows", 2)
    summary = summary_of(manet(*many, "--max-rejects", 0.5))
    assert (summary["rows"], summary["rejected_queries"]) == (5, 1)
    assert len(checksums(tmp_path / "out", "answers")) == 3
    one = manet("search", *flags, *[flag for path in pictures for flag in ("--picture", path)])
    summary_of(one)
    lines = [json.loads(line)["results"] for line in one.stdout.splitlines()[:5]]
    found = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out").glob("answers-*.parquet"))])
    assert found["query_id"].to_pylist() == [path.stem for path in pictures]
    assert found["ranked"].to_pylist() == [[hit["image_id"] for hit in hits] for hits in lines]
    assert np.array(found["scores"].to_pylist()) == pytest.approx(
        np.array([[h["score"] for h in hits] for hits in lines]),
        abs=6e-7,  # printed with six decimals
    )
    assert_refused(manet("search", "--index", index), 2, "either --picture or --queries")


def test_one_picture_has_one_descriptor(
    manet: Run, descriptors: Path, index: Path, model: Path, shop: Path, tmp_path: Path
) -> None:
    """Bit for bit the same as a row of `extract`, as a query of `evaluate` and of `search`, and by a call of the library."""
    torch.set_num_threads(1)
    ids, vectors = read_all(open_artifact(str(descriptors), "descriptors"))
    picture = sorted((shop / "catalog" / "images").rglob("*.jpg"))[40]
    row = vectors[ids.index(picture.stem)]
    network = load_model(local_copy(open_artifact(str(model), "model")))
    pixels = decode(picture.read_bytes(), network.config.pictures)
    call = Describer(network).describe(pixels[None]).vectors["sr-mac"]
    assert call.tobytes() == row.tobytes()
    table = pa.table({"query_id": ["q"], "uri": [str(picture)], "relevant": [[ids[0]]]})
    pq.write_table(table, tmp_path / "queries.parquet")
    flags = ("--queries", tmp_path / "queries.parquet", "--out", tmp_path / "out")
    summary_of(manet("evaluate", "--index", index, *flags))
    names, query = read_all(open_artifact(f"{tmp_path}/out/query-descriptors", "descriptors"))
    assert names == ["q"]
    assert query.tobytes() == row.tobytes()
    done = manet("search", "--index", index, "--picture", picture)
    summary_of(done)
    hits = open_searcher(open_index(str(index))).search(call, 7)[0]
    assert json.loads(done.stdout.splitlines()[0])["results"] == [answer_row(hit) for hit in hits]


def test_an_index_of_several_scales_describes_its_queries_so(
    manet: Run, model: Path, shop: Path, tmp_path: Path
) -> None:
    out, index = tmp_path / "descriptors", tmp_path / "index"
    extract = ("extract", "--catalog", shop / "catalog", "--model", model, "--out", out)
    summary_of(manet(*extract, "--scales", 1, "--scales", 0.7))
    assert summary_of(manet("verify", out, "--sample", 20))["same_bits"] == 20
    summary_of(manet("index", "--descriptors", out, "--out", index))
    assert json.loads((index / "query.json").read_text())["scales"] == [1.0, 0.7]
    picture = sorted((shop / "catalog" / "images").rglob("*.jpg"))[40]
    done = manet("search", "--index", index, "--picture", picture)
    summary_of(done)
    best = json.loads(done.stdout.splitlines()[0])["results"][0]
    assert best["image_id"] == picture.stem
    assert best["score"] > 0.999
    assert_refused(manet(*extract), 2, "--scales was [1.0, 0.7]")


def test_evaluate_wants_the_index_own_model(manet: Run, index: Path, shop: Path, tmp_path: Path) -> None:
    flags = ("--index", index, "--queries", shop / "queries", "--out", tmp_path / "out")
    assert_refused(manet("evaluate", *flags, "--model", shop / "catalog"), 2, "holds a catalog, but a model")


def test_compare_describes_as_extract_does(
    manet: Run, descriptors: Path, model: Path, shop: Path, tmp_path: Path
) -> None:
    """One descriptor path: the column of the table is the descriptor of the gallery, bit for bit; whitened as by an index."""
    command = ("compare", "--catalog", shop / "catalog", "--queries", shop / "queries", "--model", model)
    assert_refused(
        manet(*command, "--whiten", 9999, "--out", tmp_path / "table"), 2, "--whiten 9999", "pictures can keep"
    )
    done = manet(*command, "--part-rows", 32, "--whiten", 24, "--out", tmp_path / "table")
    rows = {(row["features"], row["descriptor"]): row for row in summary_of(done)["table"]}
    assert len(rows) == len(PLAIN) + len(ATTENDED)
    assert rows["attended", "sr-mac-learned"] != {**rows["attended", "sr-mac"], "descriptor": "sr-mac-learned"}
    assert (tmp_path / "table" / "table.png").read_bytes().startswith(b"\x89PNG")
    assert all(0 <= row["map@7"] <= 1 and row["map@7_low"] <= row["map@7_high"] for row in rows.values())
    header = (tmp_path / "table" / "table.csv").read_text().splitlines()[0]
    assert header.startswith("network,features,descriptor,map@7")
    assert header.endswith("whitened_behind_product_high")
    for path in sorted(descriptors.glob("part-*.parquet")):
        other = pq.read_table(tmp_path / "table" / "trained" / "gallery" / path.name)
        assert pq.read_table(path)["descriptor"].to_pylist() == other["descriptor_sr-mac"].to_pylist()
    own = rows["attended", "sr-mac"]
    assert own["behind"] == own["whitened_behind"] == 0
    for row in rows.values():
        assert row["behind"] == pytest.approx(own["map@7"] - row["map@7"], abs=2e-6)
        assert row["behind_low"] <= row["behind"] <= row["behind_high"]
    assert any(row["behind"] != 0 for row in rows.values())
    assert own["whitened_gain"] == pytest.approx(own["whitened_map@7"] - own["map@7"], abs=2e-6)
    index = ("index", "--descriptors", descriptors, "--whiten", 24, "--out", tmp_path / "white")
    assert summary_of(manet(*index))["whiten_power"] == 0.5
    found = manet(
        "evaluate", "--index", tmp_path / "white", "--queries", shop / "queries", "--out", tmp_path / "figures"
    )
    assert summary_of(found)["map@7"] == pytest.approx(own["whitened_map@7"], abs=1e-6)


def test_compare_says_what_besides_attention_differs() -> None:
    def trained(inputs: dict[str, str], **flags: object) -> Manifest:
        found = {name: Input(uri=f"/{name}", sha256=sha) for name, sha in inputs.items()}
        return Manifest(kind="model", version=1, created="", config=flags, code={}, inputs=found, parts=(), summary={})

    one = trained({"fewshot": "a"}, attention="none", pasted=0.0, epochs=3, seed=0, out="/one")
    two = trained({"fewshot": "a"}, attention="s*f", pasted=0.3, epochs=3, seed=0, out="/two")
    assert learned_otherwise(one, two) == ["--pasted 0.0 and 0.3"]
    other = trained({"fewshot": "b", "init": "c"}, epochs=4)  # of an older program, which tells less
    assert learned_otherwise(one, other) == ["--epochs 3 and 4", "--fewshot a and b", "--init none and c"]
    assert learned_otherwise(two, two) == []
    masks = [trained({}, pasted=0.3, pseudo_masks=name) for name in ("classical", "pip:u2netp")]
    assert learned_otherwise(*masks) == ["--pseudo-masks classical and pip:u2netp"]
    assert learned_otherwise(trained({"init": "c"}, backbone="resnet50"), trained({"init": "c"}, backbone="x")) == []


def test_compare_fuses_two_networks_and_takes_a_plain_one(manet: Run, model: Path, shop: Path, tmp_path: Path) -> None:
    """MFF against a sum of two networks' similarities made here; a model without attention has rows of its own."""
    config = json.loads((model / "config.json").read_text())
    config["network"]["attention"] = "none"
    (tmp_path / "config.json").write_text(json.dumps(config))
    files = {"model.safetensors": model / "model.safetensors", "config.json": tmp_path / "config.json"}
    plain = commit(tmp_path / "plain", "model", files)
    flags = ["compare", "--catalog", shop / "catalog", "--queries", shop / "queries", "--out", tmp_path / "table"]
    assert_refused(manet(*flags, "--model", plain), 2, "was trained without attention")
    assert_refused(manet(*flags, "--model", model, "--fuse", model), 2, "--fuse: give --baseline too")
    assert_refused(manet(*flags, "--model", model, "--plain", model), 2, "--plain", "was trained with attention s*f")
    config["network"]["pictures"]["size"] += 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    larger = commit(tmp_path / "larger", "model", files)
    assert_refused(manet(*flags, "--model", model, "--plain", larger), 2, "different sizes", "give --size")
    config["network"]["pictures"]["size"] -= 32
    config["network"] |= {"backbone": "lcnet_035", "attention": "s*f"}
    torch.manual_seed(0)
    save_model(tmp_path / "other", MANet(NetworkConfig(**config["network"])))
    other = commit(tmp_path / "fused", "model", {path.name: path for path in (tmp_path / "other").iterdir()})
    done = manet(*flags, "--model", model, "--baseline", model, "--fuse", other, "--plain", plain)
    assert "whitened" not in (tmp_path / "table" / "table.csv").read_text()
    rows = {(row["network"], row["features"], row["descriptor"]): row for row in summary_of(done)["table"]}
    mff, crow = rows["pretrained", "backbone", "mff"], rows["pretrained", "backbone", "crow"]
    sums: Any = 0
    for network in ("pretrained", "fused"):
        (ids, gallery), (query_ids, asked) = (
            _described(tmp_path / "table" / network / side, "descriptor_crow@backbone")
            for side in ("gallery", "queries")
        )
        sums = sums + asked.astype(np.float64) @ gallery.astype(np.float64).T
    best = {query: [ids[at] for at in np.argsort(-row)[:7]] for query, row in zip(query_ids, sums, strict=True)}
    (queries,) = (shop / "queries").glob("queries-*.parquet")
    relevant = pq.read_table(queries, columns=["query_id", "relevant"]).to_pydict()
    wanted = retrieval_metrics(best, dict(zip(relevant["query_id"], relevant["relevant"], strict=True)))
    assert mff["map@7"] == pytest.approx(wanted["map@7"], abs=1e-6)
    assert mff["map@7"] != crow["map@7"]
    assert len(rows) == 2 * (len(PLAIN) + len(ATTENDED)) + 1 + len(PLAIN) + len(BOLTED_ON)
    trained = rows["trained", "attended", "sr-mac"]
    bolted = rows["plain", "other-saliency", "sr-mac"]  # the same weights: S * F bolted on is what was trained
    assert bolted["map@7"] == trained["map@7"]
    assert bolted["behind"] == 0


def _described(folder: Path, column: str) -> tuple[list[str], np.ndarray]:
    table = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))
    return table["image_id"].to_pylist(), np.array(table[column].to_pylist(), np.float16)


def test_networks_that_could_not_describe_the_same_pictures_are_fused_in_one_order() -> None:
    first = (["a", "b", "c"], np.array([[1], [2], [3]], np.float16))
    second = (["c", "x", "a"], np.array([[30], [0], [10]], np.float16))
    ids, vectors = _beside([first, second])
    assert ids == ["a", "c"]
    np.testing.assert_array_equal(vectors, [[1, 10], [3, 30]])
