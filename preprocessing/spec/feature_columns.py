"""Features used in training: role in the network, cardinality, and type checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from preprocessing.spec.consistency import LABELS, NUMBERS, ValueRange, id_range, is_numeric
from preprocessing.spec.feature_spec import FeatureSpec
from preprocessing.spec.features import FeatureRoles
from workflows.common.errors import UserError


@dataclass(frozen=True)
class SideFeature:
    """A feature other than the ids: `cardinality` counts the ids 0 .. n-1 of a categorical one; None means numeric."""

    name: str
    cardinality: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.cardinality, int | None):
            raise ValueError(f"not a side feature: {self.name!r} with cardinality {self.cardinality!r}")


@dataclass(frozen=True)
class FeatureColumns:
    """A folder's features by role, and the numbers of users and items.

    Attributes:
        row_side: features of the row: the user's and the context's.
        item_side: features of the item.
        either_side: features whose owner depends on the data; `model.data.side_features` resolves them.
    """

    user: str
    item: str
    label: str
    n_users: int
    n_items: int
    row_side: tuple[SideFeature, ...] = ()
    item_side: tuple[SideFeature, ...] = ()
    either_side: tuple[SideFeature, ...] = ()

    @staticmethod
    def from_spec(
        spec: FeatureSpec, user_feature: str | None = None, item_feature: str | None = None
    ) -> FeatureColumns:
        """Assign the roles as `FeatureRoles.from_spec` does.

        Raises:
            UserError: a role cannot be determined, or the cardinality of a categorical feature is unknown.
        """
        _refuse_auto(spec)
        roles = FeatureRoles.from_spec(spec, user_feature, item_feature)
        sides = (roles.user_side, roles.item_side, roles.either_side)
        row, item, either = (tuple(_side_feature(spec, name) for name in names) for names in sides)
        n_users, n_items = spec.cardinality(roles.user), spec.cardinality(roles.item)
        return FeatureColumns(roles.user, roles.item, roles.label, n_users, n_items, row, item, either)

    @property
    def side(self) -> tuple[SideFeature, ...]:
        """All side features."""
        return (*self.row_side, *self.item_side, *self.either_side)

    @property
    def streamed(self) -> tuple[str, ...]:
        """The columns of a batch: user, item, label, then the side features of the row."""
        return (self.user, self.item, self.label, *(feature.name for feature in self.row_side))

    def cardinality(self, name: str) -> int | None:
        """A column's number of ids; None for the label and numeric features."""
        sizes = {feature.name: feature.cardinality for feature in self.side}
        return {**sizes, self.user: self.n_users, self.item: self.n_items}.get(name)

    def valid_range(self, name: str) -> ValueRange:
        cardinality = self.cardinality(name)
        return id_range(cardinality) if cardinality is not None else LABELS if name == self.label else NUMBERS

    def schema(self, names: Sequence[str]) -> pa.Schema:
        """int32 ids and float32 numbers."""
        return pa.schema([(name, pa.float32() if self.cardinality(name) is None else pa.int32()) for name in names])

    def cast(self, table: pa.Table, where: str) -> pa.Table:
        """Cast a table to the types of `schema`.

        Raises:
            UserError: a value is missing or of the wrong type; `where` names the file.
        """
        schema = self.schema(table.column_names)
        return pa.table([_cast(table.column(field.name), field, where) for field in schema], schema=schema)


def _cast(column: pa.ChunkedArray, field: pa.Field, where: str) -> pa.ChunkedArray:
    if column.null_count:
        raise UserError(f"{where}: feature {field.name!r} has {column.null_count:,} empty values; remove those rows")
    is_id = pa.types.is_integer(field.type)
    try:
        if not is_numeric(column.type):  # Arrow would parse text
            raise pa.ArrowInvalid(f"found {column.type}")
        return column.cast(field.type, safe=is_id)  # numbers may be rounded to 32 bits; ids may not
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as err:
        expected = "whole numbers below 2^31" if is_id else "numbers"
        raise UserError(
            f"{where}: feature {field.name!r} should hold {expected} ({err}); transcode the folder, or correct the rows"
        ) from None


def _refuse_auto(spec: FeatureSpec) -> None:
    used = dict.fromkeys(name for features in spec.channel_spec.values() for name in features)
    auto = [name for name in used if spec.feature_spec[name].cardinality == "auto"]
    if auto:
        raise UserError(
            f"the cardinality of {', '.join(auto)} is 'auto' in the feature spec, but training needs a number; "
            "transcode the folder to determine it: python -m preprocessing --input FOLDER --output DIR"
        )


def _side_feature(spec: FeatureSpec, name: str) -> SideFeature:
    return SideFeature(name, spec.cardinality(name) if name in spec.categorical() else None)
