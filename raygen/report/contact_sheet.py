"""Section: images of evenly spaced rows, each with its mask."""

from raygen.core.face_labels import CLASSES
from raygen.report.run_folder import EXAMPLES, RunFolder
from raygen.report.section import Section

__all__ = ["section"]


def section(run: RunFolder) -> Section | None:
    """The examples that the page's head does not show (all of them where there are few); None without images."""
    images = run.examples
    images = (
        [image for i, image in enumerate(images) if i % 3] if len(images) == EXAMPLES else images[: 2 * EXAMPLES // 3]
    )
    if not images:
        return None
    variables = {"images": images, "main": run.main, "generated": run.generated, "legend": list(enumerate(CLASSES))}
    return Section("contact-sheet", "Contact sheet", "contact_sheet.html.j2", variables)
