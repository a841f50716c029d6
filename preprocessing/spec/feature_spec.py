"""`feature_spec.yaml`: NVIDIA's description of a prepared data set, read, written and validated.

A spec is untrusted input: it is bounded by `load_yaml`, its paths cannot leave its folder, and all problems are
reported in one error, each with its path in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
)

from preprocessing.config import SPEC_NAME
from preprocessing.spec.validation import ONE_FEATURE, listed, reported, wrong_names
from workflows.common.documents import load_yaml
from workflows.common.errors import UserError, bounded

MAX_IDS = 2**31 - 1


class Feature(BaseModel):
    """One column. `cardinality` is the number of ids 0 .. n-1 of a categorical one; transcoding resolves "auto"."""

    model_config = ConfigDict(extra="allow", frozen=True)
    dtype: StrictStr | None = None
    cardinality: int | Literal["auto"] | None = None

    @field_validator("cardinality", mode="plain")
    @classmethod
    def _number_of_ids(cls, value: object) -> object:
        if value is None or value == "auto" or (type(value) is int and 0 < value <= MAX_IDS):
            return value
        raise ValueError(f"expected a whole number 1 .. {MAX_IDS}, auto or nothing")


def _inside_its_folder(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\0" in file or not path.parts:
        raise ValueError(f"{bounded(file)!r} must be a relative path that stays inside the spec's folder")
    return file


class Chunk(BaseModel):
    """Files with the same columns, stacked row-wise; the chunks of a mapping are joined column-wise."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["parquet", "csv", "torch_tensor"]
    features: list[str] = Field(min_length=1)
    files: list[Annotated[str, AfterValidator(_inside_its_folder)]] = Field(min_length=1)


class Metadata(BaseModel):
    """Attributes:
    test_samples_per_series: length of each test series, positive first.
    train_negatives: negatives per positive already in train, so none are drawn.
    time_ordered: train files are sorted by user, then time, and no user spans two files.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    test_samples_per_series: StrictInt | None = Field(default=None, ge=1)
    train_negatives: StrictInt | None = Field(default=None, ge=0)
    time_ordered: StrictBool = False


class FeatureSpec(BaseModel):
    """A complete spec; fields as in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    channel_spec: dict[str, list[str]]
    feature_spec: dict[str, Feature]
    metadata: Metadata = Metadata()
    source_spec: dict[str, list[Chunk]]

    @field_validator("feature_spec", mode="before")
    @classmethod
    def _empty_entries(cls, value: object) -> object:
        return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else value

    @field_validator("metadata", mode="before")
    @classmethod
    def _empty_metadata(cls, value: object) -> object:
        return {} if value is None else value

    def channel(self, name: str) -> str:
        """The only feature of a channel.

        Raises:
            UserError: the channel is missing or does not have exactly one feature.
        """
        features = self.channel_spec.get(name, [])
        if len(features) != 1:
            raise UserError(
                f"channel_spec.{name} should name exactly one feature, got {features or 'no such channel'}; "
                f"channels: {', '.join(self.channel_spec)}"
            )
        return features[0]

    def cardinality(self, feature: str) -> int:
        """Number of ids of a feature. Raises UserError if it is not given as a number."""
        value = self.feature_spec[feature].cardinality
        if not isinstance(value, int):
            raise UserError(f"feature_spec.{feature}.cardinality should be the number of ids, got {value!r}")
        return value

    def categorical(self) -> tuple[str, ...]:
        """Features that hold ids, in the order of `feature_spec`.

        Those with a cardinality, and those in `user_ch`, `item_ch` and channels whose names begin with "categorical";
        never the label.
        """
        channels = [name for name in self.channel_spec if name in ONE_FEATURE or name.startswith("categorical")]
        named = {feature for channel in channels for feature in self.channel_spec[channel]}
        labels = self.channel_spec.get("label_ch", [])
        return tuple(
            name
            for name, feature in self.feature_spec.items()
            if name not in labels and (name in named or feature.cardinality is not None)
        )

    def with_cardinalities(self, found: Mapping[str, int]) -> FeatureSpec:
        """The same spec, with missing and "auto" cardinalities filled in."""
        features = {
            name: feature.model_copy(update={"cardinality": found[name]})
            if name in found and not isinstance(feature.cardinality, int)
            else feature
            for name, feature in self.feature_spec.items()
        }
        return self.model_copy(update={"feature_spec": features})

    def chunks(self, mapping: str) -> list[Chunk]:
        """The chunks of a mapping. Raises UserError if it is missing."""
        if not self.source_spec.get(mapping):
            raise UserError(f"source_spec has no {mapping!r}; mappings: {', '.join(self.source_spec)}")
        return self.source_spec[mapping]

    def features(self, mapping: str) -> list[str]:
        """All features in the chunks of a mapping; raises as `chunks`."""
        return [name for chunk in self.chunks(mapping) for name in chunk.features]

    def write(self, folder: Path, name: str = SPEC_NAME) -> None:
        """Write the spec into a folder, as YAML that NVIDIA's own scripts read."""
        content = self.model_dump(exclude_unset=True, exclude_none=True)
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=True), encoding="utf-8")


def read_feature_spec(folder: Path, name: str = SPEC_NAME) -> FeatureSpec:
    """Read and validate the spec of a prepared folder.

    Args:
        name: of a file in the folder. A run's saved flags and config may name it, too, so it cannot lead elsewhere.

    Raises:
        UserError: the spec is missing or invalid; lists all problems, each with its path in the file.
    """
    path = folder / name
    try:
        is_inside, is_there = path.resolve().is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError) as err:  # a loop of links, a name that is too long
        raise UserError(f"{bounded(str(path), 200)} cannot be opened ({bounded(str(err), 200)})") from None
    if not is_inside:
        raise UserError(
            f"{bounded(name, 200)} is outside {folder}; a feature spec lies in the folder that it describes"
        )
    if not is_there:
        raise UserError(
            f"{path} does not exist; expected a folder with a feature spec, which "
            "`python -m preprocessing --input LOG --output DIR` creates"
        )
    content = load_yaml(path, "a feature spec")
    wrong = wrong_names(content)
    try:
        spec = FeatureSpec.model_validate(content)
    except ValidationError as err:
        wrong = [reported(error) for error in err.errors()] + wrong
    if wrong:
        raise UserError("\n  ".join([f"{path} is not a valid feature spec:", *listed(wrong)]))
    return spec


def chunk_files(folder: Path, chunk: Chunk) -> list[Path]:
    """The files of a chunk, resolved.

    Raises:
        UserError: files are missing, or links point outside the folder; lists all such files.
    """
    root = folder.resolve()
    files, wrong = [], []
    for name in chunk.files:
        try:
            path = (folder / name).resolve()
            present = path.is_file()
        except (OSError, RuntimeError) as err:  # a loop of links, a name that is too long
            wrong.append(f"{folder / name} cannot be opened ({err})")
            continue
        if not path.is_relative_to(root):
            wrong.append(f"{folder / name} points outside its folder")
        elif not present:
            wrong.append(f"{folder / name} does not exist")
        files.append(path)
    if wrong:
        raise UserError("source_spec names files that cannot be used: " + "; ".join(listed(wrong)))
    return files
