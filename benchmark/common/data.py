"""Prepared folders of synthetic data, kept in a cache."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmark.common.program import run_program
from preprocessing.synthetic.log import Shape

SEED = 1


@contextmanager
def cache_folder(folder: Path | None) -> Iterator[Path]:
    """The folder of generated data, absolute: the given one, or a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="neumf-benchmark-") as temporary:
            yield Path(temporary).resolve()
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()  # commands run in another folder


def prepared_folder(shape: Shape, cache: Path, *flags: str) -> Path:
    """A prepared folder of synthetic data, made if the cache has none.

    Args:
        flags: further ones of `python -m preprocessing`.
    """
    folder = cache / "-".join([str(shape), f"seed{SEED}", *(flag.strip("-") for flag in flags)])
    if not (folder / "feature_spec.yaml").exists():
        given = ["--synthetic", str(shape), "--seed", str(SEED), "--device", "cpu", "--overwrite", *flags]
        run_program("-m", "preprocessing", *given, "--output", str(folder))
    return folder
