"""Load defenses with their weights; see `load_defense`."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from robench._moved import old_arguments
from robench.catalog import Card
from robench.core import registry, specs
from robench.core.errors import ResourceError, UsageError
from robench.core.specs import Spec
from robench.core.torch_state import evaluating, standard_state
from robench.data.class_subset import Subset
from robench.defenses import _checkpoint_layouts, loaders
from robench.defenses._base import Defense, Purifier, restricted, with_purifier
from robench.defenses._checkpoints import Fetched, fetch, load_into, read_weights, sha256_of
from robench.defenses._resolve_checkpoint import Choice, choose, notes
from robench.defenses._state import state_digest, state_sha256
from robench.defenses.resolution import DEFAULT_DATASET, ResolvedDefense, find_card, resolve


@dataclass(frozen=True)
class Loaded:
    """A loaded defense, with its provenance for the record.

    Attributes:
        name: name of the card, or the spec as given.
        defense: the defense, in evaluation mode with frozen weights, on its device.
        card: the card; None for a builder without a card, and for a checkpoint whose network no card has.
        card_digest: sha256 of the card's file and any changes to it; without a card, of the canonical spec.
        checkpoint: the file that was read; None if the builder provides its own weights.
        checkpoint_sha256: sha256 of that file, combined with the name of the set of weights if it is not the default
            set; without a file, of the loaded state, see `state_digest`. For a purifier in front of a classifier,
            sha256 of both digests.
        family: family of the card, or of the cards that the checkpoint was given for.
        notes: messages for the user, one line each.
        classifier: name of the defense whose classifier follows the purifier; empty without a purifier.
        knows: number of classes of the network if only a subset of them is used; else 0.
    """

    name: str
    defense: Defense
    card: Card | None
    card_digest: str
    checkpoint: Path | None
    checkpoint_sha256: str
    family: str = ""
    notes: tuple[str, ...] = ()
    classifier: str = ""
    knows: int = 0

    @cached_property
    def state_sha256(self) -> str:
        """sha256 of the loaded weights, independent of their names and file format."""
        builder = self.card.spec if self.card else None
        if builder is None or builder.name not in registry.purifiers:
            return state_sha256(self.defense)
        return state_sha256(self.defense, str(specs.canonical(builder, registry.purifiers.get(builder.name))))


@standard_state()
@old_arguments(among="class_subset")
def load(
    name: str | ResolvedDefense,
    dataset: str | Spec | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    class_subset: Subset | None = None,
    image_size: int | None = None,
) -> Loaded:
    """Load a defense and return it with its provenance; arguments and errors are those of `load_defense`.

    The network in a `checkpoint` of MIMIR's kinds (ViT, ConViT, CaiT, Swin) is recognized by the shapes of its weights
    and selects a card of the family. If no card or several have this network, the defense gets the name of its spec.
    """
    loaded = _load(resolve(name, dataset), checkpoint, device, image_size)
    card, defense = loaded.card, loaded.defense
    if card and card.preprocessing:
        defense.preprocessing = card.preprocessing
    loaded = restrict_to_classes(loaded, class_subset)
    loaded.defense.name = loaded.name
    return loaded


def restrict_to_classes(loaded: Loaded, class_subset: Subset | None) -> Loaded:
    """Restrict a defense to some of its classes; unchanged if it has only these, or if all are used."""
    if class_subset is None or loaded.defense.num_classes != class_subset.of:
        return loaded
    count = len(class_subset.indices)
    note = f"{loaded.name} has {class_subset.of} classes: only the {count} of this dataset are used"
    defense = evaluating(restricted(loaded.defense, class_subset.indices))
    return replace(loaded, defense=defense, notes=(*loaded.notes, note), knows=class_subset.of)


def _load(
    requested: ResolvedDefense,
    checkpoint: str | Path | None,
    device: str | torch.device,
    image_size: int | None,
) -> Loaded:
    name, spec = requested.name, requested.spec
    if loaders.scheme_of(spec.name):
        return _load_by_scheme(requested, checkpoint, device, image_size)
    if spec.name in registry.purifiers:
        return _load_purified(requested, checkpoint, device, image_size)
    weights = None
    if checkpoint:
        weights = _read(fetch(checkpoint, Path()))
        choice = choose(requested, weights.state, weights.digest, weights.path, weights.network)
    elif card := requested.card:
        choice = Choice(card.name, card, card.family, card.spec)
    else:
        choice = Choice(name, None, "", spec)
    card, spec = choice.card, choice.spec
    builder = registry.defenses.get(spec.name)
    defense = specs.build(spec, builder)
    if not isinstance(defense, Defense):
        kind = type(defense).__name__
        raise UsageError(f"{spec.name} returns a {kind}: expected a robench.defenses.Defense")
    if not weights and card and card.checkpoint:
        weights = _read(_card_file(card), card)
    if weights:
        state = weights.state
        if _checkpoint_layouts.knows(spec.name):
            plain = _checkpoint_layouts.unwrapped(state)
            state = _checkpoint_layouts.fitted(plain, spec.name, defense.classifier, weights.path)
        load_into(defense, state, weights.path)
    elif card and card.download_page:
        raise ResourceError(
            f"{card.name} comes without its weights: get them from {card.download_page} "
            "and pass the file with --checkpoint"
        )
    elif card:
        hint = f" (robench train {name} writes one)" if card.recipe else ""
        raise ResourceError(f"{name} comes without trained weights: pass a file{hint} with --checkpoint")
    elif registry.defenses.holder(spec.name).startswith("robench."):
        raise UsageError(f"{name} comes without trained weights: pass a file with --checkpoint")
    path, digest, messages = (weights.path, weights.digest, weights.notes) if weights else (None, "", ())
    digest = digest or state_digest(defense)
    defense = evaluating(defense).requires_grad_(False).to(device)
    digest_of_card = card_digest(card) if card else _digest(str(specs.canonical(spec, builder)).encode())
    lines = (*choice.notes, *messages)
    return Loaded(choice.name, defense, card, digest_of_card, path, digest, choice.family, lines)


@old_arguments(among="class_subset")
def load_defense(
    name: str | ResolvedDefense,
    dataset: str | Spec | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    class_subset: Subset | None = None,
    image_size: int | None = None,
) -> Defense:
    """Load a defense: a module from images (N, C, H, W), float32 in [0, 1], to logits (N, K).

    It is in evaluation mode, with frozen weights.

    >>> defense = load_defense("mimir", dataset="digits")

    Args:
        name: a card ("mimir-digits") or its path, a family ("mimir"), a loader's name ("timm:resnet50") or the spec of
            a builder; "PURIFIER+DEFENSE" puts a purifier in front of a classifier. See `resolve`.
        dataset: dataset that selects a card of the family; None for "digits".
        checkpoint: weights to use instead of the card's: a path, `hf://owner/name/file` or an https URL. The suffix
            `#NAME` selects one of several sets of weights in the file.
        device: device of the defense.
        class_subset: classes to use of a network that has more, as `Images.class_subset`; None for all.
        image_size: side of the images in pixels, for a network of your own that does not specify its input size.

    Raises:
        UsageError: for an unknown name, invalid arguments, or a network without weights.
        ResourceError: if the checkpoint is missing, damaged, not the one that the card names, or of another network.
    """
    return load(name, dataset, checkpoint, device, class_subset, image_size).defense


def _load_by_scheme(
    requested: ResolvedDefense,
    checkpoint: str | Path | None,
    device: str | torch.device,
    image_size: int | None,
) -> Loaded:
    card = requested.card
    name, spec = (card.name, card.spec) if card else (requested.name, requested.spec)
    file = fetch(checkpoint, Path()) if checkpoint else None
    if card and card.checkpoint and not checkpoint:
        file = _card_file(card)
    opened, canonical = loaders.open_spec(
        spec, file.path if file else None, weights=file.weights if file else "", image_size=image_size
    )
    digest = sha256_of(opened.file) if opened.file else state_digest(opened.defense)
    # A card that names no file may still give the digest of the state that the loader returns.
    if card and not checkpoint and (card.checkpoint or card.sha256):
        what = f"checkpoint {opened.file}" if opened.file else f"the state of {spec.name}"
        _check_digest(card, what, digest)
    defense = evaluating(opened.defense).requires_grad_(False).to(device)
    digest_of_card = card_digest(card) if card else _digest(canonical.encode())
    family = card.family if card else ""
    digest = opened.weights.digest(digest) if opened.weights else digest
    messages = (*(file.notes if file else ()), *(opened.weights.notes if opened.weights else ()))
    return Loaded(name, defense, card, digest_of_card, opened.file, digest, family, messages)


def _load_purified(
    requested: ResolvedDefense,
    checkpoint: str | Path | None,
    device: str | torch.device,
    image_size: int | None,
) -> Loaded:
    """A purifier with its weights, in front of the classifier of another defense."""
    name, card = requested.name, requested.card
    if card is None or requested.classifier is None:
        raise UsageError(
            f"{name} is a purifier: name the defense behind it, such as {name}+timm:resnet50, or "
            f"{name}+standard-digits"
        )
    inner = load(requested.classifier, device=device, image_size=image_size)
    replaced: tuple[str, ...] = ()
    if inner.defense.purifier is not None:
        if requested.classifier.behind is not None:
            raise UsageError(
                f"{name} has two purifiers, and a defense has one: name one of them in front of {inner.classifier}"
            )
        replaced = (f"{card.name} replaces the purifier of {inner.name}",)
    purifier, path, digest, messages = _purifier_with_weights(card, checkpoint)
    try:
        purifier.check(inner.defense.image_size)
        built_in = registry.purifiers.holder(card.spec.name).startswith("robench.")
        if built_in and inner.defense.channels != 3:
            raise ValueError(f"it purifies images of 3 channels, not of {inner.defense.channels}")
        if not built_in:  # built-in purifiers keep the range by construction
            evaluating(purifier).try_out(inner.defense.image_size, inner.defense.channels)
    except ValueError as error:
        raise UsageError(f"{card.name} does not suit {card.classifier}: {error}") from error
    defense = evaluating(with_purifier(purifier, inner.defense)).requires_grad_(False).to(device)
    digest_of_card = _digest(f"{card_digest(card)} {inner.card_digest}".encode())
    combined_digest = _digest(f"{digest} {inner.checkpoint_sha256}".encode())
    card_notes = notes(card, digest, path) if path and card.path.is_file() else ()
    lines, family = (*replaced, *card_notes, *messages, *inner.notes), card.family
    return Loaded(card.name, defense, card, digest_of_card, path, combined_digest, family, lines, inner.name)


def load_purifier(
    name: str, checkpoint: str | Path | None = None, device: str | torch.device = "cpu"
) -> Purifier:
    """Load the purifier of a card without its classifier, frozen and in evaluation mode.

    The classifier that the card names need not exist yet.

    Raises:
        UsageError: for an unknown name, one that is not a purifier's, or invalid arguments.
        ResourceError: if the checkpoint is missing, damaged, or not the one that the card names.
    """
    card = find_card(name) or Card(name, name, DEFAULT_DATASET)
    if card.spec.name not in registry.purifiers:
        raise UsageError(f"{name} is not a purifier")
    purifier = _purifier_with_weights(card, checkpoint)[0]
    return evaluating(purifier).requires_grad_(False).to(device)


def _purifier_with_weights(
    card: Card, checkpoint: str | Path | None
) -> tuple[Purifier, Path | None, str, tuple[str, ...]]:
    """A card's purifier with its weights, their file, its digest, and messages for the user."""
    if checkpoint or card.checkpoint:
        # Read before the network is built, which may be slow.
        weights = _read(fetch(checkpoint, Path())) if checkpoint else _read(_card_file(card), card)
        purifier = build_purifier(card.spec)
        load_into(purifier, purifier.fitted(weights.state), weights.path)
        return purifier, weights.path, weights.digest, weights.notes
    purifier = build_purifier(card.spec)
    if any(True for _ in purifier.parameters()):
        hint = f" (robench train {card.name} writes one)" if card.recipe else ""
        advice = f": get them from {card.download_page} and" if card.download_page else f":{hint}"
        raise ResourceError(f"{card.name} comes without its weights{advice} pass the file with --checkpoint")
    return purifier, None, state_digest(purifier), ()


def build_purifier(spec: specs.Spec) -> Purifier:
    """Build the purifier of a spec with initial weights.

    Raises:
        UsageError: for an unknown name, an invalid argument, or a builder that returns something else.
    """
    purifier = specs.build(spec, registry.purifiers.get(spec.name))
    if not isinstance(purifier, Purifier):
        kind = type(purifier).__name__
        raise UsageError(f"{spec.name} returns a {kind}: expected a robench.defenses.Purifier")
    return purifier


def card_digest(card: Card) -> str:
    """sha256 of a card's file and of any changes to the card."""
    is_file = card.path.is_file()
    if is_file and not card.edited:
        return _digest(card.path.read_bytes())
    changes = f"{specs.old_text(card.builder)}\n{card.classifier}".encode()
    return _digest((card.path.read_bytes() if is_file else b"") + changes)


def checkpoint_of(name: str) -> Path:
    """The checkpoint file of a card, with its digest checked.

    Raises:
        UsageError: for an unknown name.
        ResourceError: if the card has no checkpoint, or if it is missing or not the one that the card names.
    """
    card = find_card(name)
    if card is None or not card.checkpoint:
        raise ResourceError(f"{name} has no checkpoint to start from: name a card that comes with one")
    path = _card_file(card).path
    _check_digest(card, f"checkpoint {path}", sha256_of(path))
    return path


@dataclass(frozen=True)
class _Weights:
    """The weights in a file, the digest for the record, messages for the user, and the network that the file names."""

    path: Path
    state: dict[str, Tensor]
    digest: str
    notes: tuple[str, ...]
    network: str


def _read(file: Fetched, card: Card | None = None) -> _Weights:
    """Read the weights in a file, whose digest must be that of `card`, if one is given."""
    digest = sha256_of(file.path)
    if card is not None:
        _check_digest(card, f"checkpoint {file.path}", digest)
    weights = read_weights(file.path, file.weights)
    digest, messages = weights.digest(digest), (*file.notes, *weights.notes)
    return _Weights(file.path, weights.state, digest, messages, weights.network)


def _card_file(card: Card) -> Fetched:
    """The checkpoint that a card names.

    Raises:
        ResourceError: if it is missing, stating where to get it.
    """
    try:
        return fetch(card.checkpoint, card.path.parent, card.sha256)
    except ResourceError as error:
        if not card.download_page:
            raise
        raise ResourceError(
            f"{card.name} comes without its weights: get them from {card.download_page} and put them, "
            f"as {card.checkpoint}, into the folder that the variable ROBENCH_CHECKPOINTS names, "
            "or pass the file with --checkpoint"
        ) from error


def _check_digest(card: Card, what: str, digest: str) -> None:
    # The digest may be unknown for a file that the user has to get.
    if digest != card.sha256 and (card.sha256 or not card.download_page):
        raise ResourceError(
            f"{what} has sha256 {digest}: the card {card.name} has {card.sha256 or 'none'}; get "
            "the file again, or use it as it is with --checkpoint"
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
