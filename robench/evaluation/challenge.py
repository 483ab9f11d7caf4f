"""Judge adversarial examples from any other tool on the defense of a record, and keep those that fool it."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from robench.attacks.build import build_attacks
from robench.attacks.submitted import submitted_images
from robench.core.errors import UsageError
from robench.core.io import claim, write_file
from robench.core.specs import Spec
from robench.core.torch_state import standard_state
from robench.data import Images
from robench.data._lazy_images import lazily
from robench.defenses import Loaded
from robench.engine.attack_context import Samples
from robench.engine.knowledge import Attacker
from robench.engine.run import Run
from robench.engine.setup import Setup
from robench.records.inputs import FILE, own_images
from robench.records.record import Record, SuiteFacts
from robench.records.remote import local_copy, synced
from robench.records.store import make_record, record_folder, write_record
from robench.records.submission import Submission
from robench.threats.threat import Threat


@standard_state()
def challenge(
    record: Record,
    submission: Submission,
    finder: str,
    loaded: Loaded,
    images: Images,
    device: torch.device,
    results: Path | str,
    command: str = "robench challenge",
) -> Record:
    """Judge submitted images and save those that fool the defense as a record of the suite `submitted`.

    The images are judged as those of any attack: with the record's seed and batch size, and on fresh noise draws for a
    randomized defense. The record lowers the best known robust accuracy of the defense on boards.

    Args:
        record: the challenged record.
        finder: who found the images; named in the record.
        loaded, images: the defense and the images of the record.
        results: folder of all records.

    Raises:
        UsageError: for images of other rows, or outside the threat model.
    """
    job, threat = record.job, record.job.threat_model
    if threat.name:
        raise UsageError(
            f"images cannot challenge {threat}: its adversarial examples are parameters, not pixels"
        )
    started = datetime.now(UTC)
    x_adv = _aligned(submission, images)
    _check_inside(x_adv, images, threat)
    digest = hashlib.sha256(x_adv.contiguous().numpy().tobytes()).hexdigest()
    spec = str(Spec("submitted", {"finder": _name(finder), "sha256": digest[:16]}))
    setup = Setup.of(loaded.defense, Attacker(), job, device)
    samples = Samples(lazily(images.x), images.y, images.ids)
    with submitted_images(images.x[:], x_adv):
        outcome = Run(setup, build_attacks([spec], threat), samples, threat).outcome()
    # All images are judged, even for the record of an estimate.
    job = replace(job, suite=SuiteFacts(spec, (spec,)), knowledge="full", half_width=0.0)
    finished = datetime.now(UTC)
    new = make_record(
        job,
        outcome,
        command=command,
        started=started,
        finished=finished,
        seconds=(finished - started).total_seconds(),
        device=device,
    )
    folder = record_folder(local_copy(results), job.protocol, job.defense.name, spec, seed=job.seed)
    with claim(folder), synced(folder):
        if (content := own_images(record)) is not None:
            write_file(folder / FILE, content)
        return write_record(folder, new, outcome, images, threat)


def _name(finder: str) -> str:
    name = " ".join(finder.split())
    if not name or len(name) > 100:
        raise UsageError("--finder: expected a name of 1 to 100 characters")
    return name


def _aligned(submission: Submission, images: Images) -> Tensor:
    """One image for each of the record's, the clean one where none was submitted."""
    n, x = len(images), images.x[:].clone()
    if submission.ids is None:
        if len(submission.x) != n:
            raise UsageError(
                f"{len(submission.x)} images for a record of {n}: submit one for each in their order, or name them by "
                "an array of ids"
            )
        return submission.x
    places = {sample: row for row, sample in enumerate(images.ids.tolist())}
    unknown = [sample for sample in submission.ids.tolist() if sample not in places]
    if unknown:
        raise UsageError(f"{len(unknown)} ids, such as {unknown[0]}, are not among the record's {n} images")
    x[[places[sample] for sample in submission.ids.tolist()]] = submission.x
    return x


def _check_inside(x_adv: Tensor, images: Images, threat: Threat) -> None:
    x = images.x[:]
    recorded = threat.as_recorded(x, x_adv)
    inside = threat.contains(x, recorded)
    if not inside.all():
        farthest = float(threat.distance(x, x_adv).max())
        raise UsageError(
            f"{int((~inside).sum())} of {len(x)} images lie outside {threat} around the images of {images.name} "
            f"(largest distance {farthest:.6g}): other images, another order or another threat model"
        )
