"""Which protocol a command means: the one it names, or one made up of a data set, a threat and a number of images."""

from collections.abc import Sequence
from dataclasses import replace

from robench.canonical import dataset_spec
from robench.catalog import Protocol, Suite, find_protocol, find_suite, protocol_name
from robench.core.errors import UsageError
from robench.core.specs import Spec
from robench.corruption.suite import corruptions
from robench.threats.threat import Threat

DEFAULT_PROTOCOL = "digits-linf"


def find_suites(names: Sequence[str | Suite] | None) -> list[Suite]:
    """The suites of these names; those that are found already are returned as they are."""
    return [name if isinstance(name, Suite) else find_suite(name) for name in names or ()]


def choose_protocol(
    name: str | None,
    dataset: str | Spec | None,
    threat: str | Threat | None,
    samples: int | None,
    suites: Sequence[str | Suite] | None = None,
) -> Protocol:
    """The protocol of that name, or the one that a data set, a threat and a number of samples make up.

    What is not given is taken from the default protocol; a protocol with another threat or number of samples
    is another protocol, under a name of its own.

    Args:
        suites: what is to be run; corruptions alone need no threat, and have none.
    """
    if name is not None and dataset is not None:
        raise UsageError("--protocol names its own data set: give --protocol or --dataset, not both")
    given = dataset_spec(dataset) if dataset is not None else None
    base = find_protocol(name or DEFAULT_PROTOCOL)
    if base.ends:
        raise UsageError(
            f"{base.name} is a protocol of transfer, of several data sets: use robench transfer with --from and --to"
        )
    assert base.dataset is not None
    base = replace(base, dataset=dataset_spec(base.dataset))
    found = find_suites(suites)
    named = [suite for suite in found if any(rung.threats for rung in suite.rungs)]
    if named and threat is not None:
        raise UsageError(f"{named[0].name} names a threat for each of its attacks: leave --threat out")
    if found and all(corruptions(suite.attacks) for suite in found):
        return _without_threat(base, name, given, threat, samples)
    if given is not None and given != base.dataset and threat is None:
        raise UsageError(
            f"--dataset {given} needs a threat: add --threat Linf:8/255, say, or name a --protocol"
        )
    if base.threat is None and threat is None:
        # Its own suites may do without: those that do not are refused when they are known.
        return _without_threat(base, name, given, threat, samples)
    wanted = None if threat is None else Threat.parse(threat)
    if base.threat is None:
        base = replace(base, threat=wanted, name=f"{base.name}-{threat}")
    chosen = _with_samples(base, given, wanted, samples)
    return with_own_name(chosen, base)


def with_own_name(chosen: Protocol, base: Protocol) -> Protocol:
    """`chosen` under the name of `base` where it has the same images and threat, else under that of the shipped
    protocol that has, else under a name of its own."""
    same = (chosen.dataset, chosen.threat, chosen.samples) == (base.dataset, base.threat, base.samples)
    name = base.name if same else protocol_name(str(chosen.dataset), chosen.threat_name, chosen.samples)
    return replace(chosen, name=name)


def _with_samples(
    base: Protocol, dataset: Spec | None, threat: Threat | None, samples: int | None
) -> Protocol:
    chosen = replace(
        base,
        dataset=dataset or base.dataset,
        threat=threat or base.threat,
        samples=base.samples if samples is None else samples,
    )
    if chosen.samples < 1:
        raise UsageError(f"--samples {chosen.samples}: expected at least 1")
    return chosen


def _without_threat(
    base: Protocol, name: str | None, dataset: Spec | None, threat: str | Threat | None, samples: int | None
) -> Protocol:
    if threat is not None:
        raise UsageError("corruptions have no threat: leave --threat out, or run them apart from attacks")
    chosen = _with_samples(replace(base, threat=None), dataset, None, samples)
    if name and chosen.samples == base.samples:
        return chosen
    return replace(chosen, name=protocol_name(str(chosen.dataset), chosen.threat_name, chosen.samples))
