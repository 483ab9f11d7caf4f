"""What a result of `robench.attack` prints, saves, pickles and logs."""

import pickle
import re

import numpy as np
import pytest
import torch

import robench
from robench.cli.main import main
from robench.core.errors import ResourceError, UsageError
from robench.data import load_dataset
from tests.models import Linear, images

SUITE = "pgd(steps=3)+square(queries=10)"


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "test", samples=12)


@pytest.fixture(scope="module")
def model():
    return robench.load_defense("mimir", dataset="digits")


@pytest.fixture(scope="module")
def result(model, digits):
    return robench.attack(SUITE, model, digits.x, digits.y, threat="Linf:0.15")


def test_it_prints_a_short_table(result):
    lines = repr(result).splitlines()
    assert lines[0] == f"{SUITE}, Linf:0.15, 12 images" and lines[1].startswith("clean ")
    assert lines[3].split() == ["attack", "attacked", "survive", "forward", "backward", "time"]
    assert [line.split()[0] for line in lines[4:6]] == ["pgd(steps=3)", "square(queries=10)"]
    assert len(lines) == 6 and max(map(len, lines)) <= 80


def test_a_notebook_shows_table_and_pictures(result):
    page = result._repr_html_()
    assert page.count("<tr>") == 3 and "data:image/png;base64," in page
    assert re.search(r"alt=\"\d images, their adversarial examples and the difference", page)


def test_text_of_models_and_attacks_is_escaped():
    x, y = images(3), torch.zeros(3).long()
    result = robench.attack("fgsm", Linear(3, (3, 8, 8)), x, y, threat="Linf:0.01")
    text = result.to_latex("50 % & more")
    assert r"50 \% \& more & " in text and text.count(r"\\") == 2
    assert text.count("&") == 2 + 3  # two cells after the first in both rows, and the one in the name
    # Every image is wrong without an attack, so there is no picture.
    if not result.robust.any() and set(result.fooled_by) == {"clean"}:
        assert "<img" not in result._repr_html_()


def test_latex_has_the_accuracy_after_each_attack(result):
    row = result.to_latex("Ours").splitlines()[5]
    survivors = [100 * cost.survivors / 12 for cost in result.attacks]
    shown = [float(cell.split()[0]) for cell in row.removesuffix(r" \\").split(" & ")[1:]]
    assert shown == [pytest.approx(v, abs=0.005) for v in (100 * result.clean_accuracy, *survivors)]


def test_latex_names_a_loaded_defense_as_its_card(result):
    assert result.to_latex().splitlines()[5].startswith("mimir-digits & ")


def test_a_saved_result_of_a_card_is_verified_as_it_stands(result, tmp_path, capsys):
    record = result.save(tmp_path, defense="mimir-digits", dataset="digits")
    assert record.job.dataset.name == "digits" and not (tmp_path / "images.npz").exists()
    assert verified(tmp_path) == 0
    out = capsys.readouterr().out
    assert out.startswith("VERIFIED: all 37 checkable fields hold; robust accuracy is at most")


def verified(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["verify", *map(str, arguments)])
    return ended.value.code


def test_a_saved_result_of_no_card_and_no_data_set_is_verified_by_its_weights(result, tmp_path, capsys):
    record = result.save(tmp_path)
    assert record.job.defense.name == "model:Defense" and (tmp_path / "images.npz").is_file()
    assert verified(tmp_path) == 2
    assert "specify how to load it, such as --defense python:MODULE.FUNCTION" in capsys.readouterr().err
    assert verified(tmp_path, "--defense", "mimir-digits") == 0
    assert verified(tmp_path, "--defense", "standard-digits") == 1
    assert "FAILS  defense.state_sha256" in capsys.readouterr().out


def test_other_images_beside_a_record_are_seen(result, tmp_path, capsys):
    result.save(tmp_path)
    other = result.attacked.x.flip(0)
    np.savez(tmp_path / "images.npz", x=other.permute(0, 2, 3, 1).numpy(), y=result.attacked.y.numpy())
    assert verified(tmp_path, "--defense", "mimir-digits") == 1
    assert "FAILS  dataset.digest" in capsys.readouterr().out


def test_the_images_of_another_record_are_not_overwritten(result, tmp_path):
    result.save(tmp_path)
    before = (tmp_path / "images.npz").read_bytes()
    attacked = result.attacked
    other = robench.attack("fgsm", attacked.setup.model, attacked.x.flip(0), attacked.y, threat="Linf:0.1")
    with pytest.raises(UsageError, match="contains other images: give an empty folder"):
        other.save(tmp_path)
    assert (tmp_path / "images.npz").read_bytes() == before


def test_a_link_beside_a_record_is_not_followed(result, tmp_path):
    result.save(tmp_path / "a")
    (tmp_path / "a" / "images.npz").rename(tmp_path / "elsewhere.npz")
    (tmp_path / "a" / "images.npz").symlink_to(tmp_path / "elsewhere.npz")
    assert verified(tmp_path / "a", "--defense", "mimir-digits") == 3


def test_names_that_are_not_of_what_was_attacked_are_refused(result, tmp_path):
    with pytest.raises(UsageError, match="is not the model that was attacked"):
        result.save(tmp_path, defense="standard-digits")
    flipped = robench.attack(
        "fgsm", result.attacked.setup.model, result.attacked.x.flip(0), result.attacked.y, threat="Linf:0.1"
    )
    with pytest.raises(UsageError, match="not the first 12 test images of digits"):
        flipped.save(tmp_path, dataset="digits")
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_trained_on_is_not_saved_as_what_was_attacked(tmp_path):
    model, x = Linear(3, (3, 8, 8)), images(4)
    result = robench.attack("fgsm", model, x, torch.zeros(4).long(), threat="Linf:0.01")
    with torch.no_grad():
        model.weight.mul_(2)
    with pytest.raises(UsageError, match="has changed since the attack"):
        result.save(tmp_path)


def test_a_pickled_result_has_everything_but_the_model(result):
    again = pickle.loads(pickle.dumps(result))
    assert repr(again) == repr(result) and torch.equal(again.x_adv, result.x_adv)
    with pytest.raises(UsageError, match="pickled without its model"):
        again.save("nowhere")


def test_progress_true_says_where_it_stands_on_stderr(model, digits, tmp_path, capsys):
    robench.attack("pgd(steps=2)", model, digits.x[:4], digits.y[:4], threat="Linf:0.1", progress=True)
    assert "1/1 pgd(steps=2): " in capsys.readouterr().err
    robench.run("standard-digits", "fgsm", samples=3, threat="Linf:0.1", results=tmp_path, progress=True)
    assert "1/1 fgsm: " in capsys.readouterr().err


def test_an_unknown_tracker_is_one_line(result):
    with pytest.raises(UsageError, match='unknown tracker "tensorbord": did you mean tensorboard'):
        robench.log(result, "tensorbord")


def test_a_tracker_that_is_not_installed_is_one_line(result, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ResourceError, match=r'pip install "\.\[wandb\]" in a checkout'):
        robench.log(result, "wandb")
