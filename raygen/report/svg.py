"""matplotlib figures as SVG for a page without scripts, style attributes and shared ids."""

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["INK", "plain", "plot_settings", "to_svg"]


#: Colour of text and axes in a figure. It becomes `currentColor`, so that the page's scheme decides.
INK: Final = "#010203"
#: Settings of matplotlib that give equal bytes for equal input, keep text as text and take `$` as a letter.
SETTINGS: Final[Mapping[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raygen",
    "text.parse_math": False,
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
_SVG: Final = "{http://www.w3.org/2000/svg}"
_LONG: Final = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE: Final = re.compile(r"#([\w.-]+)")


@contextmanager
def plot_settings() -> Iterator[None]:
    """Within it matplotlib has its own defaults and `SETTINGS`, whatever the user's configuration is."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's font lacks is there in the browser's
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def plain(text: str) -> str:
    """Text without characters that XML cannot hold."""
    return "".join(char for char in text if char.isprintable())


def to_svg(
    figure: "Figure", *, name: str, label: str, tooltips: Mapping[str, str] | None = None, standalone: bool = False
) -> str:
    """A figure as one `<svg>` element.

    `name` starts its ids, so that two figures of different names can stand on one page. `label` is its text for screen
    readers, `tooltips` are texts by the gid of an artist. `standalone` makes a file of its own, with a white background
    and a font; without it both are the page's.
    """
    buffer = io.BytesIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", facecolor="white" if standalone else "none", metadata=empty)
    root = ET.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in (f"{_SVG}metadata", f"{_SVG}style")]:
            parent.remove(child)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", name)
    used = {match for node in root.iter() for value in node.attrib.values() for match in _REFERENCE.findall(value)}
    for node in list(root.iter()):
        _clean(node, prefix, used, tooltips or {})
    root.attrib = {
        "class": "plot",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": plain(label),
        "stroke-linejoin": "round",
    }
    if standalone:
        root.attrib |= {"xmlns": _SVG[1:-1], "font-family": "system-ui,sans-serif", "color": "#3c3a35"}
    return ET.tostring(root, encoding="unicode")


def _clean(node: ET.Element, prefix: str, used: set[str], tooltips: Mapping[str, str]) -> None:
    """Style as attributes, ids with the prefix and only where they are referred to, short numbers, no white space."""
    node.tag = node.tag.removeprefix(_SVG)
    node.tail = None
    if node.tag != "text":
        node.text = None
    attributes: dict[str, str] = {}
    for key, value in node.attrib.items():
        if key == "style":
            pairs = (part.split(":", 1) for part in value.split(";") if ":" in part)
            attributes |= {k.strip(): v.strip() for k, v in pairs if k.strip() != "font-family"}
        elif key == "id":
            attributes |= {"id": f"{prefix}-{value}"} if value in used else {}
        else:
            if value.startswith("rotate(-0 "):
                continue
            name = "href" if key.endswith("}href") else key
            attributes[name] = _REFERENCE.sub(rf"#{prefix}-\1", value) if "#" in value else value
    for key in ("d", "x", "y", "transform"):
        if key in attributes:
            text = " ".join(attributes[key].split())
            attributes[key] = _LONG.sub(lambda match: f"{float(match[0]):.2f}", text)
    tooltip = tooltips.get(node.attrib.get("id", ""))
    node.attrib = {key: "currentColor" if value == INK else value for key, value in attributes.items()}
    if tooltip is not None:
        title = ET.Element("title")
        title.text = plain(tooltip)
        node.insert(0, title)
