"""The pages agree with the code where a program can tell: links, decisions, names in manifests."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml

from hami import site
from hami.config import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")],
)
MANUAL = ROOT / "deploy" / "manual"
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked, as forges make them."""
    headings = _HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    generated = {ROOT / "docs" / "images" / "filter-latency.svg"}  # `make bench` draws it
    dead = []
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target in generated:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)

    assert dead == []


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(file.name for file in (ROOT / "docs" / "decisions").glob("*.md"))

    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for number, name in enumerate(names, 1):
        title = (ROOT / "docs" / "decisions" / name).read_text(encoding="utf-8").splitlines()[0]
        assert title.startswith(f"# {number}. "), name


def test_scheduler_is_told_of_every_vendors_resources() -> None:
    config = yaml.safe_load((MANUAL / "scheduler.yaml").read_text(encoding="utf-8"))
    (extender,) = config["extenders"]
    named = {entry["name"] for entry in extender["managedResources"]}
    vendors = site.vendor_table(Settings())

    assert named == set(itertools.chain.from_iterable(v.resources.all() for v in vendors.values()))
    assert all(entry["ignoredByScheduler"] for entry in extender["managedResources"])


def test_every_decision_is_linked_from_the_architecture() -> None:
    linked = set(_LINK.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))

    for file in (ROOT / "docs" / "decisions").glob("*.md"):
        assert f"decisions/{file.name}" in linked, file.name


def test_every_module_of_the_controller_is_named_on_its_page() -> None:
    page = (ROOT / "docs" / "controller.md").read_text(encoding="utf-8")
    modules = {file.name for file in (ROOT / "hami" / "controllers").glob("*.py")}

    assert {name for name in modules if not re.search(rf"[`/]{name}`", page)} == {"__init__.py"}
