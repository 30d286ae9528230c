"""How queries meet an index: what is refused, what is read."""

from pathlib import Path

import pytest

from cluster.artifact import ArtifactWriter, Input, open_artifact
from cluster.errors import BadInputError, ClaimMismatchError
from jobs import evaluate
from jobs.make import make
from jobs.querying import DescribedConfig, QuerySpec, read_ids


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_ids_with_and_without_a_byte_order_mark(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(start + "b\r\n a \n\n\u00e9\n".encode())
    assert read_ids(str(path), "--ids") == ["a", "b", "\u00e9"]


def test_descriptors_below_a_job_say_and_claim_what_they_are(tmp_path: Path) -> None:
    of_index = {"size": 96, "scales": (1.0, 0.7)}
    config = evaluate.Config(index="i", queries="q", out=str(tmp_path)).model_copy(update=of_index)
    model = {"model": Input(uri="/model", sha256="a" * 64)}

    def described(name: str) -> None:
        made = DescribedConfig.of(config, f"{tmp_path}/nested", (name,), overwrite=False)  # type: ignore[arg-type]
        make(made, "descriptors", model, lambda _: ([], {}))

    described("gem")
    spec = QuerySpec.of(open_artifact(f"{tmp_path}/nested", "descriptors"))
    assert (spec.descriptor, spec.size, spec.scales) == ("gem", 96, (1.0, 0.7))
    with pytest.raises(ClaimMismatchError, match="--descriptor was 'gem', now 'sr-mac'"):
        described("sr-mac")


def test_descriptors_of_an_earlier_program_do_not_say_what_they_are(tmp_path: Path) -> None:
    ArtifactWriter.open(str(tmp_path), "descriptors", config={}, claimed=(), inputs={}).commit([], {}, {})
    with pytest.raises(BadInputError, match="does not say which descriptor"):
        QuerySpec.of(open_artifact(str(tmp_path), "descriptors"))
