"""Names and their holders, with a package of a third party."""

import json
import shutil
import subprocess
import sys
import tomllib
from importlib import invalidate_caches
from pathlib import Path

import pytest

from robench.cli import main
from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.core.index import Description
from robench.core.registry import Registry
from tests.processes import Process
from tests.test_contributing import EXAMPLES


def one():
    return 1


def two():
    return 2


def test_a_taken_name_is_refused_naming_its_holder():
    names = Registry("defense")
    names.register("wall")(one)
    with pytest.raises(UsageError, match=r'defense "wall" is taken by .*one: .*two needs another name'):
        names.register("wall")(two)
    assert names.get("wall")() == 1


def test_an_unknown_name_suggests_the_closest():
    names = Registry("attack")
    names.register("square")(one)
    names.register("fab")(two)
    with pytest.raises(UsageError) as error:
        names.get("sqare")
    assert str(error.value) == 'unknown attack "sqare": did you mean square? robench list attacks shows all 2'


def test_a_canonical_spec_has_no_defaults_and_keeps_whatever_a_builder_with_keywords_takes():
    names = Registry("attack")
    names.register("push")(lambda steps=10, **settings: (steps, settings))
    assert str(names.canonical("push(steps=10,size=3)")) == "push(size=3)"
    assert str(registry.attacks.canonical("pgd(steps=20,rel_step_size=0.5)")) == "pgd(rel_step_size=0.5)"
    with pytest.raises(UsageError, match="pgd takes no argument size"):
        registry.attacks.canonical("pgd(size=3)")


def test_a_broken_package_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_images.py").write_text(
        "raise RuntimeError('operator nms does not exist\\nat line 3')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    built_in = {"images": Description("broken_images:load", "", ())}
    with pytest.raises(ResourceError) as error:
        Registry("dataset", built_in).get("images")
    assert str(error.value) == (
        "a package cannot be imported (operator nms does not exist at line 3): robench doctor says how to mend it"
    )


@pytest.fixture(scope="module", params=["copied", pytest.param("installed with pip", marks=pytest.mark.slow)])
def outsider(request, tmp_path_factory):
    """A folder with the package of CONTRIBUTING, copied there or installed with pip, which builds it first."""
    package = tmp_path_factory.mktemp("package")
    code = package / "src" / "my_package"
    code.mkdir(parents=True)
    (code / "__init__.py").touch()
    (package / "pyproject.toml").write_text(EXAMPLES["package"])
    modules = {"defense": "my_linear", "purifier": "my_grey", "attack": "corners", "dataset": "stripes"}
    for example, module in {**modules, "transformation": "brightness"}.items():
        (code / f"{module}.py").write_text(EXAMPLES[example])
    place = tmp_path_factory.mktemp("outsider")
    if request.param == "copied":
        copy(code, place)
        return place
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(place),
        str(package),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return place


def copy(code: Path, place: Path) -> None:
    """Put a package and its metadata where pip would."""
    project = tomllib.loads(EXAMPLES["package"])["project"]
    shutil.copytree(code, place / code.name)
    info = place / f"{code.name}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {target}" for name, target in names.items())])
        for group, names in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))


KINDS = (
    registry.defenses,
    registry.purifiers,
    registry.attacks,
    registry.datasets,
    registry.transformations,
)


def _command(places, arguments):
    sys.path[:0] = places
    invalidate_caches()
    for kind in KINDS:
        kind._outsiders = None
    main(arguments)


def robench(places, *arguments, cwd):
    """Exit status, stdout and stderr of a command that finds packages in these folders."""
    return Process(_command, list(map(str, places)), list(arguments), cwd=cwd).wait()


def test_an_installed_package_adds_to_every_registry(outsider, tmp_path, monkeypatch, capsys):
    command = (
        "run --defense my-grey(levels=4)+my-linear(num_classes=2) --dataset stripes --samples 20 --json "
    )
    command += "--attack corners(steps=3)+pgd(steps=2) --threat Linf:0.15"
    code, out, err = robench([outsider], *command.split(), cwd=tmp_path)
    assert code == 0, err
    (record,) = json.loads(out)["records"]
    assert record["suite"]["attacks"] == ["corners(steps=3)", "pgd(steps=2)"] and record["n"] == 20
    assert record["defense"]["classifier"] == "my-linear(num_classes=2)" and "stochastic" in record
    # The same network in another process: the record verifies.
    monkeypatch.syspath_prepend(str(outsider))
    for kind in KINDS:
        monkeypatch.setattr(kind, "_outsiders", None)
    (folder,) = {path.parent for path in tmp_path.glob("results/**/record.json")}
    assert call("verify", "--trust", str(folder)) == 0
    assert "VERIFIED" in capsys.readouterr().out
    command = (
        "run --defense my-linear(num_classes=2) --dataset stripes --attack pgd(steps=2) --samples 20 --json"
    )
    assert call(*command.split(), "--threat", "brightness:0.1", "--results", str(tmp_path / "more")) == 0
    assert json.loads(capsys.readouterr().out)["records"][0]["threat"] == "brightness:0.1"


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code


def test_two_packages_with_one_name_are_refused(outsider, tmp_path):
    rival = tmp_path / "rival"
    info = rival / "rival-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[robench.attacks]\nsquare = rival:Square\n")
    code, _, err = robench([rival, outsider], "list", "attacks", cwd=tmp_path)
    assert code == 2
    assert "is taken by robench.attacks.square.Square: package rival needs another name" in err
    assert "Traceback" not in err
