"""The `report` job: what it refuses before it writes anything."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifact import ArtifactWriter, Blob
from cluster.errors import BadInputError
from jobs.parquet import parquet_bytes
from jobs.report import FIGURES, Config, run
from tests.conftest import commit


def test_tables_of_another_evaluation_are_named(tmp_path: Path) -> None:
    catalog = pa.table({"image_id": ["a", "b"], "uri": ["a.jpg", "b.jpg"]})
    queries = pa.table({"query_id": ["q"], "uri": ["q.jpg"], "relevant": [["a"]]})
    rankings = pa.table({"query_id": ["q"], "ranked": [["b", "a"]]})
    writer = ArtifactWriter.open(str(tmp_path / "evaluation"), "evaluation", config={}, claimed=(), inputs={})
    writer.units.put("all", {"rankings.parquet": Blob(data=parquet_bytes(rankings))})
    writer.commit(["all"], dict.fromkeys(FIGURES, 0.5), {})
    (tmp_path / "file").write_text("x")
    made = {
        kind: str(commit(tmp_path / kind, kind, {"file": tmp_path / "file"}))
        for kind in ("model", "index", "comparison")
    }

    def refused(**tables: pa.Table) -> str:
        flags: dict[str, Any] = dict(made)
        for name, table in tables.items():
            flags[name] = str(tmp_path / f"{name}-{table.num_rows}-of-{table[0][0]}.parquet")
            pq.write_table(table, flags[name])
        config = Config(**flags, evaluation=str(tmp_path / "evaluation"), out=str(tmp_path / "report"))
        with pytest.raises(BadInputError) as caught:
            run(config)
        assert not (tmp_path / "report").exists()
        return str(caught.value)

    said = refused(catalog=catalog.slice(0, 1), queries=queries)
    assert "--catalog" in said and "no image_id b" in said
    said = refused(catalog=catalog, queries=queries.set_column(0, "query_id", pa.array(["p"])))
    assert "--queries" in said and "no query_id q" in said
