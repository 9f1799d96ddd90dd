"""The data card: README.md of an exported data set, for people and for the Hugging Face hub.

Runs, networks and settings are named by digest, never by a path of this machine. The same rows give the same card: it
has no date.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import yaml
from pydantic import Field

from raygen.core.config import Config
from raygen.core.hashing import canonical
from raygen.exports.base import Export
from raygen.exports.licences import licence_of, network_rows
from raygen.exports.row_scan import ExportListing, ExportSource

__all__ = [
    "PHOTOGRAPHS_USE",
    "SYNTHETIC_USE",
    "CardConfig",
    "ExportTotals",
    "limits",
    "title_of",
    "write_card",
]


#: Settings of a generate or edit run that the card lists; none of them is a path.
SETTINGS: Final = (
    "sampler",
    "guidance",
    "guidance_parametrization",
    "guidance_interval",
    "negative_keeps",
    "use_conditions",
    "seed",
    "noise",
    "attempt",
    "batch",
    "precision",
    "mixing",
    "missing",
    "codec",
)
#: Names of settings in the card, where they differ: the `seed` of a row is that of its plan.
SETTING_NAMES: Final = {"sampler": "settings of the sampler", "codec": "stored as", "seed": "noise_seed"}
#: Size categories of the Hugging Face hub, with their upper limits.
SIZES: Final = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
#: Distinct values that the card lists, and their labels.
LABELS: Final[Mapping[str, str]] = {
    "method": "method that made the pictures, not raygen",
    "plan": "plan",
    "checkpoint": "model, sha256",
    "sampler": "sampler",
    "steps": "steps",
}
#: Digits of a digest in the card.
SHORT: Final = 12
#: Metric families that compare with training faces.
MEMORIZATION: Final = frozenset({"memorized", "training_distance"})
MAX_SCORES: Final = 40
TABLE: Final = ["| | |", "|---|---|"]


class CardConfig(Config):
    """Parts of the data card that raygen cannot know."""

    title: str | None = Field(None, description="name of the data set; default: made from the run")
    licence: str | None = Field(
        None, description="licence of the data set as an identifier of the Hugging Face hub, such as cc-by-4.0"
    )
    licences: Mapping[str, str] = Field(
        default_factory=dict, description="licences of networks, by their name or sha256, or the first letters of these"
    )
    intended_use: str | None = Field(None, description="paragraph on the intended use, in place of the generated one")
    url: str | None = Field(None, description="page of the data set, for croissant.json")
    version: str | None = Field(None, description="version of the data set, such as 1.0.0, for croissant.json")
    published: str | None = Field(
        None, pattern=r"^\d{4}-\d{2}-\d{2}$", description="day of publication, such as 2026-11-28, for croissant.json"
    )
    creators: tuple[str, ...] = Field((), description="who made the data set, for croissant.json")
    citation: str | None = Field(None, description="how to cite the data set, in BibTeX, for croissant.json")


@dataclass(frozen=True)
class ExportTotals:
    """Exported rows, rows that could not be exported (`bad`) and their reasons; files, bytes and masks."""

    rows: int
    bad: int
    files: int
    bytes: int
    masks: int
    reasons: Mapping[str, int] = field(default_factory=dict)


def write_card(
    config: CardConfig,
    format: Export,
    source: ExportSource,
    listing: ExportListing,
    totals: ExportTotals,
    scores: Sequence[Mapping[str, Any]],
    *,
    marks: bool,
    signed_by: str | None = None,
    warning: str = "",
    job: Mapping[str, Any],
) -> str:
    """README.md of the data set: YAML front matter, then Markdown.

    `scores`: METRICS rows. `marks`: whether pictures are marked as synthetic. `signed_by`: SHA-256 of the certificate
    of content credentials. `warning`: what was found where pictures are noise. `job`: the job as the card prints it.
    """
    title = title_of(config, source)
    check = (
        "`sha256sum --check SHA256SUMS`, run in this folder, checks that all files are complete and unchanged. "
        "`croissant.json` describes the data set for machines (MLCommons Croissant 1.1)."
    )
    job_yaml = yaml.safe_dump(dict(job), sort_keys=False, allow_unicode=True)
    parts = [
        _front_matter(title, config, format, source, totals),
        f"# {title}",
        *([f"> **Warning.** {warning}"] if warning else []),
        _summary(source, listing, totals, marks, signed_by),
        f"## What is in it\n\n{_counts(listing, totals, source)}\n\n{format.usage()}\n\n{check}",
        f"## How it was made\n\n{_provenance(source, listing)}",
        f"## How good it is\n\n{_scores(scores)}",
        f"## Networks and licences\n\n{_licences(config, source, listing, scores)}",
        f"## Intended use\n\n{config.intended_use or (PHOTOGRAPHS_USE if source.made_by is None else SYNTHETIC_USE)}",
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits(source, format, scores)),
        (
            f"## How to make it again\n\nFrom run `{source.store.plan().run_id}` with raygen:\n\n"
            f"```yaml\n{job_yaml}```\n\n{REPRODUCE}"
        ),
    ]
    return "\n\n".join(parts) + "\n"


def title_of(config: CardConfig, source: ExportSource) -> str:
    """The title that was chosen, or one made from the run."""
    kind = {"model": "synthetic faces", "program": "drawn faces", None: "faces"}[source.made_by]
    if source.store.plan().kind == "edit":
        kind = "edited faces"
    return config.title or f"{kind.capitalize()} {source.store.plan().run_id}"


SIGNED: Final = (
    " Every picture file is also signed: it has C2PA content credentials, by the certificate with SHA-256 `{}`, which "
    "`c2patool FILE` and content credential viewers check. Whether that signer can be trusted, they say by a list of "
    "their own."
)
PHOTOGRAPHS_USE: Final = "Training and testing within the terms of the original data set."
SYNTHETIC_USE: Final = (
    "Training and testing of face recognition, face parsing and attribute classifiers where labels have to be known "
    "and many pictures are needed, and research into how synthetic data differs from photographs. Not intended as "
    "evidence of a person's appearance, for passing pictures off as photographs, or as the only test data "
    "of a system that is used on people."
)
REPRODUCE: Final = (
    "The same rows in the same shards give the same files, for any number of workers and after interruptions, with the "
    "same versions of raygen, Pillow and pyarrow. The commits of the export record the versions. Signatures, if "
    "there are any, differ each time."
)


def _front_matter(title: str, config: CardConfig, format: Export, source: ExportSource, totals: ExportTotals) -> str:
    fields: dict[str, Any] = {
        "pretty_name": title,
        "license": config.licence or "unknown",
        "size_categories": [next((name for limit, name in SIZES if totals.rows < limit), "n>1B")],
        "task_categories": ["image-classification", "unconditional-image-generation"],
        "tags": ["face", "raygen", *(["synthetic"] if source.made_by else [])],
    }
    if format.hub_files is None:
        fields["viewer"] = False  # or the hub takes croissant.json for the data
    else:
        files = [{"split": "train", "path": format.hub_files}]
        fields["configs"] = [{"config_name": "default", "data_files": files}]
        features = format.hub_features(masks=totals.masks > 0)
        fields["dataset_info"] = {
            "config_name": "default",
            **({"features": features} if features is not None else {}),
            # `datasets` compares the number of rows with what it loads.
            "splits": [{"name": "train", "num_bytes": totals.bytes, "num_examples": totals.rows}],
            "download_size": totals.bytes,
            "dataset_size": totals.bytes,
        }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _summary(
    source: ExportSource, listing: ExportListing, totals: ExportTotals, marks: bool, signed_by: str | None
) -> str:
    identities = f" of {len(listing.identities):,} identities" if listing.identities else ""
    count = f"**{totals.rows:,} pictures{identities}.** "
    if source.made_by is None:
        return (
            f"{count}They were ingested, not generated: they may show real people, and are not marked as synthetic. "
            "Marks in the original files, such as IPTC's digital source type, were not read. Rights in the pictures, "
            "and the consent of the people in them, are those of the original data set."
        )
    if source.store.plan().kind == "edit":
        how = "each is an existing picture that a diffusion model edited, and may show a real person"
    else:
        how = f"all were made by {'a diffusion model' if source.made_by == 'model' else 'a drawing program'}"
    if not marks:
        return (
            f"{count}They are synthetic: {how}. The pictures are not marked as synthetic, because the export left the "
            "marks out; please keep this card with them."
        )
    source_type = "trainedAlgorithmicMedia" if source.made_by == "model" else "algorithmicMedia"
    return (
        f"{count}They are synthetic: {how}. Every picture file is marked: it has an XMP packet with IPTC "
        f"`DigitalSourceType` `{source_type}` and its recipe as JSON (in a PNG also as the text chunk `raygen`). Rows "
        "have `is_synthetic: true` where the format has rows."
    ) + ("" if signed_by is None else SIGNED.format(signed_by))


def _counts(listing: ExportListing, totals: ExportTotals, source: ExportSource) -> str:
    lines = [f"| pictures | {totals.rows:,} |"]
    if listing.identities:
        each, planned = listing.pictures_each, source.planned_pictures
        before = ", those among them that could not be exported" if totals.bad else ""
        lines += [
            f"| identities | {len(each):,} |",
            (
                f"| pictures of an identity: fewest, median, most | {each.min():,}, {np.median(each):g}, {each.max():,}"
                f"{before} |"
            ),
        ]
        if planned is not None:
            fewer = int((each < planned).sum())
            lines.append(f"| identities with fewer than the {planned:,} that were planned | {fewer:,} |")
    else:
        lines.append("| identities | none recorded |")
    lines += [
        f"| masks | {totals.masks:,} |",
        f"| files, bytes | {totals.files:,}, {totals.bytes:,} |",
        f"| rows left out because their generation failed | {listing.failed:,} |",
    ]
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(totals.reasons.items()))
    for count, name, more in (
        (listing.unselected, "rows left out because the selection of the run rejected them", ""),
        (listing.other_splits, "rows left out because they belong to other splits", ""),
        (totals.bad, "rows left out because they could not be exported", f" ({reasons})"),
        (listing.too_few, "rows left out because their identity has too few pictures", ""),
        (listing.unlabelled if listing.identities else 0, "pictures without an identity", ""),
    ):
        if count:
            lines.append(f"| {name} | {count:,}{more} |")
    return "\n".join([*TABLE, *lines])


def _provenance(source: ExportSource, listing: ExportListing) -> str:
    plan = source.store.plan()
    lines = [f"| run | `{plan.run_id}` (`raygen {plan.kind}`) |", f"| digest of its rows | `{source.digest}` |"]
    for name, label in LABELS.items():
        if listing.distinct.get(name):
            lines.append(f"| {label} | {', '.join(f'`{value}`' for value in listing.distinct[name])} |")
    for name in SETTINGS:
        value = source.settings.get(name)
        if value is not None and value != [] and not (name == "sampler" and not isinstance(value, Mapping)):
            lines.append(f"| {SETTING_NAMES.get(name, name.replace('_', ' '))} | `{canonical(value).decode()}` |")
    if isinstance(source.plan_settings.get("planning"), Mapping):
        lines.append(f"| planned as | `{canonical(source.plan_settings['planning']).decode()}` |")
    lines += [f"| gate | {gate['description']} |" for gate in source.gates]
    if source.table == "faces" and isinstance(source.plan_settings.get("data"), Mapping):
        lines.append(f"| data set | `{source.plan_settings['data'].get('kind')}` |")
    table = "\n".join([*TABLE, *lines])
    if source.table != "samples" or listing.distinct.get("method"):
        return table
    return (
        f"{table}\n\nThe noise of a picture depends only on `noise_seed`, its `sample_id` and the attempt. The `seed` "
        "of a row is that of its plan."
    )


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return (
            "Nothing was measured for this export: its setting `scores` names no evaluation. The quality of the "
            "pictures is unknown."
        )
    head = "| metric | of | value (interval) | n | measured with |\n|---|---|---|---|---|"
    rows = [_score_line(row) for row in scores if "/" not in row["slice"]]
    more = "" if len(rows) <= MAX_SCORES else f"\n\nThe evaluation has {len(rows) - MAX_SCORES} more."
    references = sorted({row["reference"][:SHORT] for row in scores if row["reference"]})
    against = f"\n\nCompared with reference rows of digest {', '.join(references)}." if references else ""
    note = (
        "\n\nValues are comparable only for the same network, n and protocol. `fid` uses the Inception network of "
        "2015; `fd:<network>` is the same distance with the features of another network."
    )
    return "\n".join([head, *rows[:MAX_SCORES]]) + more + against + note


def _score_line(row: Mapping[str, Any]) -> str:
    value = "none" if row["value"] is None else f"{row['value']:.4g}"
    if row["ci_low"] is not None and row["ci_high"] is not None:
        value += f" ({row['ci_low']:.4g}, {row['ci_high']:.4g})"
    protocol = json.loads(row["protocol"] or "{}")
    details = [str(protocol[name]) for name in ("network", "input", "level", "compare") if protocol.get(name)]
    if protocol.get("sha256"):
        details.insert(1, f"sha256 {str(protocol['sha256'])[:SHORT]}")
    if protocol.get("n_reference"):
        details.append(f"{protocol['n_reference']:,} reference rows")
    if protocol.get("fewer_rows_than_values"):
        details.append("**not more rows than feature dimensions: most of the value may be bias**")
    elif protocol.get("low_n"):
        details.append("**few rows: the value is biased**")
    line = f"| {row['metric']} | {row['slice']} | {value} | {row['n']:,} | {', '.join(details)} |"
    return line.replace("\n", " ")


def _licences(
    config: CardConfig, source: ExportSource, listing: ExportListing, scores: Sequence[Mapping[str, Any]]
) -> str:
    lines = [
        f"| model `{str(sha)[:SHORT]}` | made the pictures | {licence_of(str(sha), config.licences)} |"
        for sha in listing.distinct.get("checkpoint", ())
    ]
    if source.made_by == "model" and not lines:
        lines.append(f"| model of unknown digest | made the pictures | {licence_of('', {})} |")
    lines += network_rows(source.plan_settings, scores, config.licences)
    own = f"The data set itself: **{config.licence}**."
    if not config.licence:
        own = "The data set itself: no licence was chosen."
    table = (
        "\n".join(["| network | what it did | licence |", "|---|---|---|", *lines]) if lines else "No network was used."
    )
    note = "The licences of weights, and of their training data, may also apply to generated pictures."
    return f"{own}\n\n{table}\n\n{note}"


def limits(source: ExportSource, format: Export, scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the pictures and labels are not; a sentence or two each."""
    limits = []
    if source.made_by == "model":
        limits += [
            (
                "A model repeats the gaps of its training data: groups that are rare there are rare, or of lower "
                "quality, here. The pictures are balanced only where the plan says so."
            ),
            _resemblance(source, scores),
            (
                "Labels are the conditions of the generation, not measurements of the pictures: identities, masks and "
                "attributes. The metrics above, if any, measure how well the pictures meet them."
            ),
        ]
    if source.made_by == "program":
        limits.append("These are drawings. Models that are trained on them alone may not work on photographs.")
    if isinstance(source.plan_settings.get("parser"), Mapping) and source.table == "faces":
        limits.append(
            "Masks of faces that had none were made by a parser, see the networks above; nobody checked them."
        )
    if source.made_by is None:
        limits.append("Labels are those of the original data set; they were not checked.")
    if format.template is not None:
        limits.append(
            f"Pictures were cropped to {format.size} px: a similarity transform moves five landmarks, those "
            f"stored with a picture or else those of its mask, to "
            + ("the template of ArcFace." if format.align == "arcface" else f"{format.align} (fractions of the sides).")
        )
    elif format.size is not None:
        limits.append(f"Pictures were resized to {format.size} px with a Lanczos filter, masks by nearest neighbour.")
    if format.pictures and format.codec == "jpeg":
        limits.append(f"JPEG of quality {format.quality} is lossy; the run stores the pictures without loss.")
    return limits


def _resemblance(source: ExportSource, scores: Sequence[Mapping[str, Any]]) -> str:
    """The measures against pictures that resemble real people."""
    sentences = ["A generated face can resemble a person in the training data."]
    refused = [gate["description"] for gate in source.gates if gate["refuses_real_people"]]
    sentences += refused or ["No gate refused such faces."]
    if refused and source.plan_settings.get("on_exhausted") == "best":
        sentences.append("Where no attempt passed all gates, the best image that no such gate refused may be included.")
    families = {str(row["metric"]).partition(":")[0].partition("@")[0] for row in scores}
    if families & MEMORIZATION:
        sentences.append("The scores above say how similar the pictures are to training faces.")
    else:
        sentences.append("An evaluation with `memorization` would measure it over the whole set; this card has none.")
    return " ".join(sentences)
