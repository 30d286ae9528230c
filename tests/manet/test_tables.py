import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manet.errors import InputError
from manet.tables import (
    CATALOG,
    QUERIES,
    check_catalog,
    check_queries,
    descriptor_column,
    descriptors_to_numpy,
    typed,
)


def test_optional_columns_are_filled_and_others_dropped() -> None:
    table = check_catalog(pa.table({"image_id": ["a"], "uri": ["x.jpg"], "price": [3]}), "--catalog f")
    assert table.schema == CATALOG
    assert table["description"].null_count == 1


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image_id": ["a"]}, "no column 'uri'; it has image_id"),
        ({"image_id": ["a", "b", "a"], "uri": ["x", "y", "z"]}, "image_id 'a' stands in 2 rows"),
        ({"image_id": ["a", ""], "uri": ["x", "y"]}, "row 1 has no image_id"),
        ({"image_id": ["a", None], "uri": ["x", "y"]}, "row 1 has no image_id"),
        ({"image_id": ["a", "b"], "uri": ["x", None]}, "row 1 has no uri"),
        ({"image_id": ["a"], "uri": [[1]]}, "column 'uri' is list"),
    ],
)
def test_bad_catalogues_are_named(columns: dict[str, list[object]], words: str) -> None:
    with pytest.raises(InputError, match="--catalog f: ") as error:
        check_catalog(pa.table(columns), "--catalog f")
    assert words in str(error.value)


def test_numbers_serve_as_ids() -> None:
    assert check_catalog(pa.table({"image_id": [1, 2], "uri": ["x", "y"]}), "f")["image_id"].to_pylist() == ["1", "2"]


def test_columns_that_a_schema_names_get_its_types() -> None:
    table = pa.table({"relevant": [[1]], "query_id": [7], "bytes": [b"x"]})
    assert typed(table, QUERIES, "f").to_pylist() == [{"relevant": ["1"], "query_id": "7", "bytes": b"x"}]
    with pytest.raises(InputError, match="f: column 'relevant' is int64, and must be list"):
        typed(pa.table({"relevant": [1]}), QUERIES, "f")


def test_queries_need_relevant_ids() -> None:
    good = {"query_id": ["q"], "uri": ["x"], "relevant": [["a"]]}
    assert check_queries(pa.table(good), "f").schema == QUERIES
    nothing: tuple[list[str] | None, ...] = ([], None, ["q"])  # itself is no answer to a gallery picture
    for empty in nothing:
        with pytest.raises(InputError, match="'q' has no relevant id"):
            check_queries(pa.table({**good, "relevant": pa.array([empty], pa.list_(pa.string()))}), "f")


def test_descriptors_through_a_file() -> None:
    vectors = np.random.default_rng(0).random((5, 8)).astype(np.float16)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image_id": list("abcde"), "descriptor": descriptor_column(vectors)}), buffer)
    ids, back = descriptors_to_numpy(pq.read_table(io.BytesIO(buffer.getvalue())))
    assert ids == list("abcde")
    np.testing.assert_array_equal(back, vectors)
    with pytest.raises(InputError, match="not a descriptors table"):
        descriptors_to_numpy(pa.table({"image_id": ["a"]}))
