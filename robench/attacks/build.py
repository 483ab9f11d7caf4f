"""Building the attacks of a suite from their specs."""

from collections.abc import Sequence

from robench.attacks._base import Attack
from robench.attacks._parameter_space import ParameterSpace
from robench.core import registry, specs
from robench.core.errors import UsageError
from robench.threats.threat import Threat


def canonical(text: str | specs.Spec) -> specs.Spec:
    """The canonical spec of one attack.

    Raises:
        UsageError: for an unknown attack or a wrong argument.
    """
    spec = specs.parse(text)
    builder = registry.attacks.get(spec.name)
    specs.build(spec, builder)
    return specs.canonical(spec, builder)


def build_attacks(attacks: Sequence[str | specs.Spec], threat: Threat) -> list[tuple[str, Attack]]:
    """Build the attacks of a suite; returns (canonical spec, attack) pairs.

    Raises:
        UsageError: for an unknown attack, a wrong argument, or an attack that does not support the threat.
    """
    built = []
    for text in attacks:
        spec = specs.parse(text)
        builder = registry.attacks.get(spec.name)
        attack = specs.build(spec, builder)
        if threat.norm not in attack.norms:
            inside = f"{threat}, in {threat.norm} of its parameters," if threat.name else f"{threat}"
            raise UsageError(
                f"{spec.name} is defined in {', '.join(attack.norms)}: {inside} is not among them"
            )
        if threat.name and attack.in_pixels:
            raise UsageError(
                f"{spec.name} searches images, but {threat} is a threat on parameters: use for example pgd or apgd"
            )
        built.append(
            (str(specs.canonical(spec, builder)), ParameterSpace(attack, threat) if threat.name else attack)
        )
    return built
