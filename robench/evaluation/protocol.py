"""Which protocol a command means: the one it names, or one made up of a data set, a threat and a number of images."""

from collections.abc import Sequence
from dataclasses import replace

from robench.canonical import dataset_name
from robench.catalog import Protocol, find_protocol, find_suite, own_name
from robench.core.errors import UsageError
from robench.corruption.suite import corruptions
from robench.threats.threat import NO_THREAT, Threat

DEFAULT_PROTOCOL = "digits-linf"


def choose_protocol(
    name: str | None,
    dataset: str | None,
    threat: str | None,
    samples: int | None,
    suites: Sequence[str] | None = None,
) -> Protocol:
    """The protocol of that name, or the one that a data set, a threat and a number of samples make up.

    What is not said is taken from the default protocol; a protocol with another threat or number of samples
    is another protocol, under a name of its own.

    Args:
        suites: what is to be run; corruptions alone need no threat, and have none.
    """
    if name is not None and dataset is not None:
        raise UsageError("--protocol names its own data set: give --protocol or --dataset, not both")
    dataset = dataset_name(dataset) if dataset is not None else None
    base = find_protocol(name or DEFAULT_PROTOCOL)
    base = replace(base, dataset=dataset_name(base.dataset))
    if base.ends:
        raise UsageError(
            f"{base.name} is a protocol of transfer, of several data sets: robench run with --from and --to"
        )
    own = [suite for suite in suites or () if any(rung.threats for rung in find_suite(suite).rungs)]
    if own and threat is not None:
        raise UsageError(f"{own[0]} names a threat for each of its attacks: leave --threat out")
    if suites and all(corruptions(find_suite(suite).attacks) for suite in suites):
        return _without_threat(base, name, dataset, threat, samples)
    if dataset is not None and dataset != base.dataset and threat is None:
        raise UsageError(
            f"--dataset {dataset} needs a threat: add --threat Linf:8/255, say, or name a --protocol"
        )
    if base.threat == NO_THREAT:
        if threat is None:
            # Its own suites may do without: those that do not are refused when they are known.
            return _without_threat(base, name, dataset, threat, samples)
        base = replace(base, threat=threat, name=f"{base.name}-{threat}")
    chosen = replace(
        base,
        dataset=dataset or base.dataset,
        threat=str(Threat.parse(base.threat if threat is None else threat)),
        samples=base.samples if samples is None else samples,
    )
    if chosen.samples < 1:
        raise UsageError(f"--samples {chosen.samples}: expected at least 1")
    return with_own_name(chosen, base)


def with_own_name(chosen: Protocol, base: Protocol) -> Protocol:
    """`chosen` under the name of `base` where it is of the same images and threat, else under one of its own."""
    same = (chosen.dataset, Threat.parse(chosen.threat), chosen.samples) == (
        base.dataset,
        Threat.parse(base.threat),
        base.samples,
    )
    if same:
        return replace(chosen, name=base.name)
    return replace(chosen, name=own_name(chosen.dataset, chosen.threat, chosen.samples))


def _without_threat(
    base: Protocol, name: str | None, dataset: str | None, threat: str | None, samples: int | None
) -> Protocol:
    if threat is not None:
        raise UsageError("corruptions have no threat: leave --threat out, or run them apart from attacks")
    chosen = replace(
        base,
        dataset=dataset or base.dataset,
        threat=NO_THREAT,
        samples=base.samples if samples is None else samples,
    )
    if chosen.samples < 1:
        raise UsageError(f"--samples {chosen.samples}: expected at least 1")
    if name and chosen.samples == base.samples:
        return chosen
    return replace(chosen, name=f"{chosen.dataset}-c-n{chosen.samples}")
