"""Role of each feature in the network: user id, item id, label, or side feature of the user or item."""

from __future__ import annotations

from dataclasses import dataclass

from preprocessing.spec.feature_spec import FeatureSpec
from workflows.common.errors import UserError


@dataclass(frozen=True)
class FeatureRoles:
    """The features of a spec by role, in the order of its channels.

    Attributes:
        user, item, label: one feature each.
        user_side: side features of user channels; they belong to the row (a drawn negative keeps its positive's).
        item_side: side features of item channels; they belong to the item (a drawn negative gets its own).
        either_side: side features of other channels, such as `numeric_inputs`; the data decides which side.
    """

    user: str
    item: str
    label: str
    user_side: tuple[str, ...] = ()
    item_side: tuple[str, ...] = ()
    either_side: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All features, ids and label first."""
        return (self.user, self.item, self.label, *self.user_side, *self.item_side, *self.either_side)

    @staticmethod
    def from_spec(spec: FeatureSpec, user_feature: str | None = None, item_feature: str | None = None) -> FeatureRoles:
        """Determine the roles from the channel names.

        The id is the feature of `user_ch` / `item_ch` if there is such a channel, else the one named by the argument,
        else the feature with the largest cardinality among the channels whose names contain "user" / "item".

        Raises:
            UserError: a role is ambiguous, or an argument contradicts the spec.
        """
        user = _id_feature(spec, "user", user_feature)
        item = _id_feature(spec, "item", item_feature)
        label = spec.channel("label_ch")
        sides: dict[str, list[str]] = {"user": [], "item": [], "": []}
        known = {user, item, label}
        for channel, features in spec.channel_spec.items():
            found = [name for name in dict.fromkeys(features) if name not in known]
            sides[_side(channel)] += found
            known.update(found)
        return FeatureRoles(user, item, label, tuple(sides["user"]), tuple(sides["item"]), tuple(sides[""]))


def _side(channel: str) -> str:
    """The side a channel's name mentions, "user" or "item"; empty if neither or both."""
    found = [side for side in ("user", "item") if side in channel.lower()]
    return found[0] if len(found) == 1 else ""


def _id_feature(spec: FeatureSpec, side: str, named: str | None) -> str:
    if f"{side}_ch" in spec.channel_spec:
        found = spec.channel(f"{side}_ch")
        if named is not None and named != found:
            raise UserError(f"--{side}_feature {named}: channel_spec.{side}_ch says {found!r}; leave out one of them")
        return found
    if named is not None:
        if named not in spec.feature_spec:
            raise UserError(f"--{side}_feature {named}: not in feature_spec ({', '.join(spec.feature_spec)})")
        return named
    names = [n for channel, features in spec.channel_spec.items() if _side(channel) == side for n in features]
    sizes = {name: size for name in names if isinstance(size := spec.feature_spec[name].cardinality, int)}
    autos = [name for name in names if spec.feature_spec[name].cardinality == "auto"]
    if autos and len(names) > 1:
        raise UserError(
            f"cannot tell which of {', '.join(names)} is the {side} id until the cardinality 'auto' of "
            f"{', '.join(autos)} is resolved: transcode the folder (python -m preprocessing --input FOLDER "
            f"--output DIR), or name the id with --{side}_feature"
        )
    if autos:
        return autos[0]
    if not sizes:
        raise UserError(
            f"no channel says which feature is the {side} id; channels: {', '.join(spec.channel_spec)}. Add "
            f"channel_spec.{side}_ch, or name the id with --{side}_feature"
        )
    # If cardinalities tie, as in toy examples, a name such as user_id decides.
    return max(sizes, key=lambda name: (sizes[name], "id" in name.lower().split("_")))
