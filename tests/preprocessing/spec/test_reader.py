from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.sources import text
from preprocessing.spec.feature_spec import Chunk, Feature, FeatureSpec
from preprocessing.spec.reader import iter_mapping, locate, read_mapping, save_tensor, text_features
from workflows.common.errors import UserError

torch = pytest.importorskip("torch")

_FEATURES = {
    "user": Feature(dtype="torch.int64", cardinality=100),
    "item": Feature(dtype="torch.int64", cardinality=100),
    "age": Feature(),
    "label": Feature(dtype="torch.float32"),
}


def _spec(*chunks: Chunk) -> FeatureSpec:
    return FeatureSpec(channel_spec={}, feature_spec=_FEATURES, source_spec={"train": list(chunks)})


def _table(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user": rng.integers(0, 100, rows),
            "item": rng.integers(0, 100, rows),
            "age": rng.integers(0, 400, rows) / 4,
            "label": rng.integers(0, 2, rows).astype(np.float32),
        }
    )


def _write(kind: str, part: pd.DataFrame, path: Path) -> None:
    if kind == "csv":
        part.to_csv(path, header=False, index=False)
    elif kind == "torch_tensor":
        ids = all(part[name].dtype.kind == "i" for name in part)
        rows = np.ascontiguousarray(part.to_numpy(np.int64 if ids else np.float32))
        torch.save(torch.tensor(rows), path)
    else:
        # Columns are matched by name, so the file may have extra columns and any order.
        pq.write_table(pa.table({"more": np.zeros(len(part)), **part[list(part)[::-1]]}), path)


def _chunk(folder: Path, kind: str, part: pd.DataFrame, cuts: list[int], name: str) -> Chunk:
    files = []
    for index, rows in enumerate(np.split(np.arange(len(part)), sorted(cuts))):
        files.append(f"{name}-{index}.dat")
        _write(kind, part.iloc[rows], folder / files[-1])
    return Chunk(type=kind, features=list(part), files=files)  # type: ignore[arg-type]


def _read(folder: Path, spec: FeatureSpec, *features: str) -> dict[str, list[Any]]:
    return read_mapping(folder, spec, "train", features).to_pydict()


@st.composite
def _layouts(draw: st.DrawFn) -> tuple[int, list[tuple[str, list[str], list[int]]], list[str]]:
    """(rows, chunks as (type, features in any order, row offsets of file cuts), features to read)."""
    rows = draw(st.integers(3, 30))
    names = draw(st.permutations(list(_FEATURES)))
    ends = sorted(draw(st.sets(st.integers(1, len(names) - 1))))
    chunks = []
    for start, stop in zip([0, *ends], [*ends, len(names)], strict=True):
        cuts = sorted(draw(st.sets(st.integers(1, rows - 1), max_size=3)))  # no empty files
        chunks.append((draw(st.sampled_from(["parquet", "csv", "torch_tensor"])), names[start:stop], cuts))
    return rows, chunks, draw(st.lists(st.sampled_from(names), min_size=1, unique=True))


@settings(max_examples=30, deadline=None)
@given(layout=_layouts())
def test_files_are_stacked_and_chunks_are_joined_side_by_side(fresh: Callable[[], Path], layout: Any) -> None:
    rows, chunks, features = layout
    folder, table = fresh(), _table(rows)
    spec = _spec(*(_chunk(folder, kind, table[names], cuts, str(i)) for i, (kind, names, cuts) in enumerate(chunks)))
    found = read_mapping(folder, spec, "train", features)
    assert found.column_names == features
    for name in features:
        assert found.column(name).to_pylist() == table[name].tolist()


def test_nvidias_tensors_keep_their_types(tmp_path: Path) -> None:
    torch.save(torch.tensor([[0, 5], [1, 6]]), tmp_path / "train_data_0.pt")
    torch.save(torch.tensor([[1.0], [0.0]]), tmp_path / "train_data_1.pt")
    spec = _spec(
        Chunk(type="torch_tensor", features=["user", "item"], files=["train_data_0.pt"]),
        Chunk(type="torch_tensor", features=["label"], files=["train_data_1.pt"]),
    )
    table = read_mapping(tmp_path, spec, "train", ["item", "user", "label"])
    assert table.to_pydict() == {"item": [5, 6], "user": [0, 1], "label": [1.0, 0.0]}
    assert table.schema.types == [pa.int64(), pa.int64(), pa.float32()]


def test_csv_ids_are_integers_and_unspecified_types_are_floats(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("3,0.5,1\n4,7,0\n")
    spec = _spec(Chunk(type="csv", features=["user", "age", "label"], files=["a.csv"]))
    table = read_mapping(tmp_path, spec, "train", ["user", "age"])
    assert table.schema.types == [pa.int64(), pa.float64()]
    assert table.to_pydict() == {"user": [3, 4], "age": [0.5, 7.0]}


def test_chunks_that_are_not_needed_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1\n")
    spec = _spec(
        Chunk(type="csv", features=["user"], files=["a.csv"]),
        Chunk(type="parquet", features=["item"], files=["gone.parquet"]),
    )
    assert _read(tmp_path, spec, "user") == {"user": [1]}


@pytest.mark.parametrize("kind", ["parquet", "csv", "torch_tensor"])
def test_chunks_of_different_lengths_are_refused(tmp_path: Path, kind: str) -> None:
    spec = _spec(
        _chunk(tmp_path, kind, _table(4)[["user", "item"]], [], "ids"),
        _chunk(tmp_path, kind, _table(5)[["label"]], [2], "labels"),
    )
    with pytest.raises(UserError, match=r"ids-0\.dat .*4 rows, labels-0\.dat .*5 rows"):
        _read(tmp_path, spec, "user", "label")


def test_lengths_are_compared_even_if_chunks_share_their_first_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _table(2).to_parquet(tmp_path / f"{name}.parquet")
    spec = _spec(
        Chunk(type="parquet", features=["user"], files=["a.parquet", "b.parquet"]),
        Chunk(type="parquet", features=["item"], files=["a.parquet"]),
    )
    with pytest.raises(UserError, match="differ in length"):
        _read(tmp_path, spec, "user", "item")


def test_a_feature_missing_from_all_chunks_is_named(tmp_path: Path) -> None:
    spec = _spec(_chunk(tmp_path, "csv", _table(3)[["user"]], [], "a"))
    with pytest.raises(UserError, match=r"source_spec\.train .*no feature item"):
        _read(tmp_path, spec, "user", "item")


class _Malice:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save(_Malice(tmp_path / "made"), tmp_path / "a.pt")
    spec = _spec(Chunk(type="torch_tensor", features=["user"], files=["a.pt"]))
    with pytest.raises(UserError, match=r"a\.pt"):
        _read(tmp_path, spec, "user")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(2, 1)], "got list"),
        (torch.zeros(2, 3), "expected 1 columns .*got 3"),
        (torch.zeros(2, 1, 1), "rows, features"),
        (torch.tensor(1.0), "rows, features"),
        (torch.ones(2, 1).to_sparse(), "dense tensor"),
        (torch.ones(2, 1, device="meta"), "dense tensor"),
        (torch.ones(2, 1, dtype=torch.complex64), "real numbers, got torch.complex64"),
        (torch.ones(2, 1).to(torch.float8_e4m3fn), "real numbers, got torch.float8_e4m3fn"),
        (torch.ones(1, 1).expand(10**12, 1), r"dense tensor .* \[1000000000000, 1\]"),
    ],
)
def test_a_tensor_of_the_wrong_shape_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    torch.save(value, tmp_path / "a.pt")
    spec = _spec(Chunk(type="torch_tensor", features=["label"], files=["a.pt"]))
    with pytest.raises(UserError, match=message):
        _read(tmp_path, spec, "label")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.zeros(0, 1), []),
        (torch.ones(2, 1, dtype=torch.bfloat16), [1.0, 1.0]),
        (torch.ones(2, 1, requires_grad=True), [1.0, 1.0]),
        (torch.ones(3), [1.0, 1.0, 1.0]),
        (torch.ones(3, 1, dtype=torch.float16), [1.0, 1.0, 1.0]),
        (torch.arange(6.0).reshape(2, 3).T[:, :1], [0.0, 1.0, 2.0]),
        (torch._neg_view(torch.full((2, 1), -1.0)), [1.0, 1.0]),
    ],
)
def test_tensors_of_any_dtype_and_layout_are_read(tmp_path: Path, value: Any, expected: list[float]) -> None:
    torch.save(value, tmp_path / "a.pt")
    spec = _spec(Chunk(type="torch_tensor", features=["label"], files=["a.pt"]))
    assert _read(tmp_path, spec, "label") == {"label": expected}


@pytest.mark.parametrize("kind", ["parquet", "csv", "torch_tensor"])
@pytest.mark.parametrize("content", [b"\0\x01garbage\xff", b"PAR1", b"PK\x03\x04"])
def test_garbage_is_refused_and_named(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / "bad.dat").write_bytes(content)
    spec = _spec(Chunk(type=kind, features=["user"], files=["bad.dat"]))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"bad\.dat"):
        _read(tmp_path, spec, "user")


def test_a_parquet_file_without_the_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"other": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: .*user"):
        _read(tmp_path, _spec(Chunk(type="parquet", features=["user"], files=["a.parquet"])), "user")


def test_files_with_incompatible_types_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"user": ["one"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="user"):
        _read(tmp_path, _spec(Chunk(type="parquet", features=["user"], files=["a.parquet", "b.parquet"])), "user")


def test_a_csv_chunk_with_a_header_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,label\n1,0\n")
    with pytest.raises(UserError, match=r"a\.csv, line 1: column 'user'.*integer"):
        _read(tmp_path, _spec(Chunk(type="csv", features=["user", "label"], files=["a.csv"])), "user")


def test_an_empty_csv_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.csv").write_text("1\n")
    assert _read(tmp_path, _spec(Chunk(type="csv", features=["user"], files=["a.csv", "b.csv"])), "user") == {
        "user": [1]
    }


@settings(max_examples=30, deadline=None)
@given(layout=_layouts(), rows=st.integers(1, 40))
def test_blocks_have_the_requested_size_and_cover_all_rows(fresh: Callable[[], Path], layout: Any, rows: int) -> None:
    n, chunks, features = layout
    folder, table = fresh(), _table(n)
    spec = _spec(*(_chunk(folder, kind, table[names], cuts, str(i)) for i, (kind, names, cuts) in enumerate(chunks)))
    blocks = list(iter_mapping(folder, spec, "train", features, rows))
    assert [block.num_rows for block in blocks] == [min(rows, n - start) for start in range(0, n, rows)]
    found = pa.concat_tables(blocks, promote_options="permissive")
    assert found.to_pydict() == {name: table[name].tolist() for name in features}


@pytest.mark.parametrize("kind", ["parquet", "csv", "torch_tensor"])
@pytest.mark.parametrize("rows", [1, 2, 4, 5])
def test_total_lengths_are_reported_whichever_block_differs(tmp_path: Path, kind: str, rows: int) -> None:
    spec = _spec(
        _chunk(tmp_path, kind, _table(9)[["label"]], [2], "labels"),
        _chunk(tmp_path, kind, _table(4)[["user", "item"]], [], "ids"),
    )
    with pytest.raises(UserError, match=r"labels-0\.dat .*9 rows, ids-0\.dat .*4 rows"):
        list(iter_mapping(tmp_path, spec, "train", ["user", "label"], rows))


def test_a_csv_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE_BYTES", 64)
    sizes: list[int] = []
    read = text.TextPiece.read
    monkeypatch.setattr(text.TextPiece, "read", lambda piece: sizes.append(piece.size_bytes) or read(piece))
    table = _table(100)
    spec = _spec(_chunk(tmp_path, "csv", table[["user", "label"]], [], "a"))
    blocks = iter_mapping(tmp_path, spec, "train", ["user"], rows=10)
    assert next(blocks).column("user").to_pylist() == table["user"][:10].tolist()
    assert sum(sizes) < 200  # of about 700 bytes
    assert sum(block.num_rows for block in blocks) == 90


def test_a_mapping_without_rows_is_one_empty_block_of_the_right_types(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    pq.write_table(pa.table({"item": pa.array([], pa.int32())}), tmp_path / "a.parquet")
    spec = _spec(
        Chunk(type="csv", features=["user", "label"], files=["a.csv"]),
        Chunk(type="parquet", features=["item"], files=["a.parquet"]),
    )
    (block,) = iter_mapping(tmp_path, spec, "train", ["item", "user", "label"], rows=5)
    assert block.num_rows == 0
    assert block.schema.types == [pa.int32(), pa.int64(), pa.float64()]


def test_a_leading_zero_among_ids_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1\n007\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2: .*'007'"):
        _read(tmp_path, _spec(Chunk(type="csv", features=["user"], files=["a.csv"])), "user")


def test_text_may_contain_delimiters_and_newlines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE_BYTES", 8)  # a naive cut would fall inside the quotes
    (tmp_path / "a.csv").write_text('"Paris, ""rive\ngauche""",1\nLyon,2\n')
    spec = _spec(Chunk(type="csv", features=["item", "user"], files=["a.csv"]))
    assert text_features(tmp_path, spec, ["user", "item"]) == {"item"}
    (block,) = iter_mapping(tmp_path, spec, "train", ["item", "user"], 5, text={"item"})
    assert block.to_pydict() == {"item": ['Paris, "rive\ngauche"', "Lyon"], "user": [1, 2]}


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("csv", ["M", "F"], True),
        ("csv", ["1", "2", "x"], False),  # an error, reported by the reader
        ("csv", ["01", "02"], True),
        ("csv", ["", "NULL"], False),
        ("parquet", ["M", "F"], True),
        ("parquet", pd.Categorical(["M", "F"]), True),
        ("parquet", [1, 2], False),
        ("torch_tensor", [1, 2], False),
    ],
)
def test_text_is_distinguished_from_numbers(tmp_path: Path, kind: str, values: Any, expected: bool) -> None:
    spec = _spec(_chunk(tmp_path, kind, pd.DataFrame({"user": values}), [], "a"))
    assert text_features(tmp_path, spec, ["user", "item"]) == ({"user"} if expected else set())


def test_an_empty_parquet_file_does_not_determine_types(tmp_path: Path) -> None:
    spec = _spec(_chunk(tmp_path, "parquet", pd.DataFrame({"item": ["M", "F"]}), [0], "a"))
    assert text_features(tmp_path, spec, ["item"]) == {"item"}  # pandas writes an empty column of text as null


def test_a_feature_that_is_text_in_only_some_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("M\nF\n")
    (tmp_path / "b.csv").write_text("0\n1\n")
    spec = _spec(Chunk(type="csv", features=["user"], files=["a.csv", "b.csv"]))
    with pytest.raises(UserError, match=r"'user' holds text in .*a\.csv and integers in .*b\.csv"):
        text_features(tmp_path, spec, ["user"])


@pytest.mark.parametrize("kind", ["parquet", "csv", "torch_tensor"])
def test_a_row_is_located_in_its_file(tmp_path: Path, kind: str) -> None:
    spec = _spec(_chunk(tmp_path, kind, _table(7)[["user", "item"]], [3, 5], "ids"))
    found = [locate(tmp_path, spec, "train", "item", row) for row in range(7)]
    names = [
        f"{tmp_path.resolve()}/ids-{file}.dat, row {row}"
        for file, rows in enumerate((3, 2, 2))
        for row in range(1, rows + 1)
    ]
    assert found == names


def test_a_memory_mapped_matrix_is_saved_as_a_tensor(tmp_path: Path) -> None:
    matrix = np.memmap(tmp_path / "raw", dtype=np.int64, mode="w+", shape=(3, 2))
    matrix[:] = [[1, 2], [3, 4], [5, 6]]
    save_tensor(tmp_path / "a.pt", matrix)
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    assert loaded.dtype is torch.int64
    assert loaded.tolist() == [[1, 2], [3, 4], [5, 6]]
