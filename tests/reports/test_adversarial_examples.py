"""Pictures of fooled samples: who is shown, how much is amplified, and that a file comes out."""

import dataclasses
from io import BytesIO

import pytest
from matplotlib.image import imread

from robench.core.errors import ResourceError
from robench.engine.outcome import ResultWarning
from robench.records.record import read_record
from robench.reports.plots.adversarial_examples import Example, amplification, examples, picture


def test_the_picture_is_a_png_and_the_same_again(run, tmp_path):
    run.write()
    first = picture(run.folder, run.images, tmp_path / "new" / "a.png")
    height, width, _ = imread(BytesIO(first.read_bytes()), format="png").shape
    assert width > height > 600
    again = picture(run.folder, run.images, tmp_path / "b.png")
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"defense": "costs $5 and \x1b[31m $x^"},
        {"defense": "d" * 300},
        {"health": [ResultWarning("nan-logits", "3 of 30")]},
    ],
)
def test_odd_names_and_doubts_can_be_drawn(runs, tmp_path, changes):
    run = runs(**changes)
    run.write()
    assert picture(run.folder, run.images, tmp_path / "a.png").stat().st_size > 10_000


def test_the_samples_shown_are_fooled_and_of_every_class(runs):
    run = runs(n=60)
    run.write()
    shown = examples(read_record(run.folder), run.images)
    rows = {int(sample): i for i, sample in enumerate(run.images.ids)}
    assert len(shown) == 6
    assert {example.label for example in shown} == {"zero", "one", "two"}
    for example in shown:
        row = rows[example.sample]
        assert example.attack == run.outcome.fooled_by[row]
        assert example.adversarial.equal(run.outcome.x_adv[row])
        assert example.prediction == run.images.classes[int(run.outcome.prediction[row])] != example.label


@pytest.mark.parametrize(("largest", "factor"), [(0.1, 5), (8 / 255, 15), (0.25, 2), (0.9, 1), (1e-5, 1000)])
def test_the_difference_is_amplified_into_the_range_of_grey(run, largest, factor):
    clean = run.images.x[0] * 0
    example = Example(0, clean, clean + largest, "a", "b", "pgd", largest)
    assert amplification([example]) == factor


def test_a_record_without_fooled_samples_has_no_picture(run, tmp_path):
    robust = ["clean" if name == "clean" else "" for name in run.outcome.fooled_by]
    outcome = dataclasses.replace(run.outcome, fooled_by=robust)
    unbroken = dataclasses.replace(run, outcome=outcome)
    unbroken.write()
    with pytest.raises(ResourceError, match="nothing to show"):
        picture(run.folder, run.images, tmp_path / "a.png")


def test_other_images_are_refused(run, tmp_path):
    run.write()
    with pytest.raises(ResourceError, match="first 30 of digits test"):
        picture(run.folder, run.images.first(10), tmp_path / "a.png")


def test_a_place_that_cannot_be_written_is_named(run, tmp_path):
    run.write()
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot write"):
        picture(run.folder, run.images, tmp_path / "file" / "a.png")
