"""Sections of the page: how one is added, and what each of them keeps to."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from raygen.report import build
from raygen.report.build import SECTIONS, build_report
from raygen.report.run_folder import RunFolder
from raygen.store.filesystem import FileStore
from tests.report.test_build import EVIL, make_run

MODULE = """
from raygen.report.run_folder import RunFolder
from raygen.report.section import Section


def section(run: RunFolder) -> Section | None:
    return Section("stages", "Stages <in> short", "stages.html.j2", {"names": list(run.stages), "text": TEXT})
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("sections") / "run", rows=8, shard=8)


def test_a_section_is_a_module_a_template_and_a_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "added_section.py").write_text(f"TEXT = {EVIL!r}\n{MODULE}")
    (tmp_path / "stages.html.j2").write_text(
        "<ul>{% for name in names %}<li>{{ name }}</li>{% endfor %}</ul>{{ text }}"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(build, "TEMPLATES", (*build.TEMPLATES, tmp_path))
    monkeypatch.setattr(build, "SECTIONS", (importlib.import_module("added_section").section, *SECTIONS))
    page = Path(build_report(str(run), str(tmp_path / "page.html"))).read_text()
    assert '<a href="#stages">Stages &lt;in&gt; short</a>' in page, "its navigation entry"
    body = page[page.index('<section id="stages">') : page.index("</section>")]
    assert "<h2>Stages &lt;in&gt; short</h2>" in body
    assert "<ul><li>faces</li><li>samples</li></ul>" in body
    assert EVIL not in page
    assert page.index('id="stages"') < page.index('id="metrics"'), "the order is that of the list"


def test_navigation_names_the_sections_of_the_page_in_order(run: Path, tmp_path: Path) -> None:
    page = Path(build_report(str(run), str(tmp_path / "page.html"))).read_text()
    navigation = page[page.index("<nav") : page.index("</nav>")]
    links = re.findall(r'<a href="#([^"]+)">([^<]+)</a>', navigation)
    assert links == re.findall(r'<section id="([^"]+)">\s*<h2>([^<]+)</h2>', page)
    assert len({anchor for anchor, _ in links}) == len(links) > 6


def test_every_section_has_its_own_anchor_and_template(run: Path) -> None:
    folder = RunFolder.open(str(run))
    sections = [section for make in SECTIONS if (section := make(folder)) is not None]
    assert len({section.template for section in sections}) == len(sections)
    assert all((build.TEMPLATES[0] / section.template).is_file() for section in sections)
    unused = {path.name for path in build.TEMPLATES[0].glob("*.j2")} - {"base.html.j2", "macros.html.j2"}
    assert len(unused) == len(SECTIONS)


def test_the_folder_is_opened_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    start = FileStore.__init__

    def watched(self: FileStore, url: str) -> None:
        opened.append(str(url).rstrip("/"))
        start(self, url)

    monkeypatch.setattr(FileStore, "__init__", watched)
    build_report(str(run), str(tmp_path / "page.html"))
    assert opened.count(str(run)) == 1


def test_an_empty_folder_makes_no_section_but_provenance() -> None:
    empty = RunFolder("memory:", FileStore("memory://nothing"), {}, [], [], [], None)
    made: Sequence[str] = [s.anchor for make in SECTIONS if (s := make(empty)) is not None]
    assert made == ["provenance"]
