"""Results of checks as JUnit XML, GitHub annotations and Markdown."""

import xml.etree.ElementTree as tree
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robench.core.errors import RobenchError
from robench.core.formatting import count, markdown
from robench.core.sanitize import plain

if TYPE_CHECKING:
    from robench.verification.regression import Verdict

# A baseline that could not be checked, and its error.
Error = tuple[str, RobenchError]


def junit(verdicts: Sequence["Verdict"], seconds: Sequence[float], errors: Sequence[Error] = ()) -> bytes:
    """Write a JUnit report with one test suite per baseline and one test case per step. It ends with a newline.

    Args:
        seconds: the duration of each check.
        errors: the baselines that could not be checked.
    """
    root = tree.Element("testsuites", name="robench check")
    for verdict, duration in zip(verdicts, seconds, strict=True):
        failures = sum(not step.held for step in verdict.steps)
        suite = tree.SubElement(
            root,
            "testsuite",
            name=plain(f"{verdict.defense} against {verdict.baseline}"),
            tests=str(len(verdict.steps)),
            failures=str(failures),
            time=f"{duration:.3f}",
        )
        for step in verdict.steps:
            case = tree.SubElement(
                suite, "testcase", name=step.name, classname=f"robench.check.{plain(verdict.defense)}"
            )
            if step.held:
                tree.SubElement(case, "system-out").text = plain(step.detail)
            else:
                tree.SubElement(case, "failure", message=plain(step.detail))
    for name, error in errors:
        suite = tree.SubElement(root, "testsuite", name=plain(name), tests="1", failures="0", errors="1")
        case = tree.SubElement(suite, "testcase", name="check", classname=f"robench.check.{plain(name)}")
        tree.SubElement(case, "error", message=plain(str(error)))
    tree.indent(root)
    return tree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def annotations(verdicts: Sequence["Verdict"], errors: Sequence[Error] = ()) -> str:
    """One GitHub Actions annotation per failed step and error; empty when every step holds."""
    lines = []
    for verdict in verdicts:
        for step in verdict.steps:
            if not step.held:
                title = _property(f"{plain(verdict.defense)}: {step.name}")
                lines.append(f"::error title={title}::{_message(plain(step.detail))}\n")
    lines += [f"::error title={_property(plain(name))}::{_message(plain(str(e)))}\n" for name, e in errors]
    return "".join(lines)


def summary(verdicts: Sequence["Verdict"], errors: Sequence[Error] = ()) -> str:
    """Write a short report in Markdown; `errors` are the baselines that could not be checked."""
    lines = ["| | defense | step | result |", "|---|---|---|---|"]
    for verdict in verdicts:
        for step in verdict.steps:
            status = "holds" if step.held else "**FAILS**"
            lines.append(
                f"| {status} | {markdown(verdict.defense)} | {step.name} | {markdown(step.detail)} |"
            )
    lines += [f"| **ERROR** | {markdown(name)} | check | {markdown(str(e))} |" for name, e in errors]
    for verdict in verdicts:
        lines += ["", f"{markdown(verdict.defense)}: {cost(verdict)}."]
    return "\n".join(lines) + "\n"


def cost(verdict: "Verdict") -> str:
    """The cost of the check compared with the baseline's run."""
    saving = verdict.saving
    more = f" ({1 / saving:.1f} times more)" if saving else ""
    ratio = f" ({saving:.1f} times fewer)" if saving >= 1 else more
    return (
        f"{verdict.attacked} of {verdict.open} images attacked, {count(verdict.passes)} passes; the baseline took "
        f"{count(verdict.baseline_passes)}{ratio}"
    )


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
