"""The data card: what a data set is, who made it and how good it is, for people and for the Hugging Face hub.

Knows what there is to say. Names runs, networks and settings by digest, never a path of the machine that it was made
on. Says the same for the same rows: it has no date.
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
from raygen.exports.row_scan import Listing, Source

__all__ = ["BUNDLED_MODEL", "CardConfig", "Totals", "licence_of", "write_card"]


#: Settings of a generate or edit run that a reader wants to know; none of them names a path.
SETTINGS: Final = (
    "sampler",
    "guidance",
    "guidance_parametrization",
    "negative_keeps",
    "use_conditions",
    "seed",
    "noise",
    "attempt",
    "batch",
    "dtype",
    "mixing",
    "missing",
    "codec",
)
#: What a setting is called where its name stands for something else; rows have a `seed` of their plan.
NAMES: Final = {"sampler": "settings of the sampler", "codec": "stored as", "seed": "noise_seed"}
#: Names of sizes as the hub writes them, by the number that is too many.
SIZES: Final = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)
SHORT: Final = 12
#: Families of numbers that compare with training faces.
COPIED: Final = frozenset({"memorized", "training_distance"})
MOST_SCORES: Final = 40
WHOLE: Final = "`sha256sum --check SHA256SUMS`, run in this folder, says whether all of it arrived as it was written."


class CardConfig(Config):
    """What only the person knows who passes the data set on."""

    title: str | None = Field(None, description="name of the data set; none makes one")
    licence: str | None = Field(None, description="of the data set, as Hugging Face spells it, such as cc-by-4.0")
    licences: Mapping[str, str] = Field(
        default_factory=dict, description="licence of a network by its name or sha256, or their first letters"
    )
    intended_use: str | None = Field(None, description="instead of the paragraph that is written otherwise")


@dataclass(frozen=True)
class Totals:
    """What came out."""

    rows: int
    bad: int
    files: int
    bytes: int
    masks: int
    reasons: Mapping[str, int] = field(default_factory=dict)


def write_card(
    config: CardConfig,
    format: Export,
    source: Source,
    listing: Listing,
    totals: Totals,
    scores: Sequence[Mapping[str, Any]],
    *,
    marks: bool,
    job: Mapping[str, Any],
) -> str:
    """README.md of the data set: YAML front matter, then Markdown."""
    title = config.title or f"{_kind(source).capitalize()} {source.store.plan().run_id}"
    parts = [
        _front(title, config, format, source, totals),
        f"# {title}",
        _summary(source, listing, totals, marks),
        f"## What is in it\n\n{_counts(listing, totals, source)}\n\n{format.reading()}\n\n{WHOLE}",
        f"## How it was made\n\n{_making(source, listing)}",
        f"## How good it is\n\n{_scores(scores)}",
        f"## Networks and licences\n\n{_licences(config, source, listing, scores)}",
        f"## Intended use\n\n{config.intended_use or _use(source)}",
        f"## Limits\n\n{_limits(source, format, scores)}",
        f"## How to make it again\n\n{_again(source, job)}",
    ]
    return "\n\n".join(parts) + "\n"


def _kind(source: Source) -> str:
    made = {"model": "synthetic faces", "program": "drawn faces", None: "faces"}[source.made_by]
    return "edited faces" if source.store.plan().kind == "edit" else made


def _front(title: str, config: CardConfig, format: Export, source: Source, totals: Totals) -> str:
    size = next((name for limit, name in SIZES if totals.rows < limit), "n>1B" if totals.rows >= 10**9 else "n<1K")
    tags = ["face", "raygen", *(["synthetic"] if source.made_by else [])]
    said: dict[str, Any] = {
        "pretty_name": title,
        "license": config.licence or "unknown",
        "size_categories": [size],
        "task_categories": ["image-classification", "unconditional-image-generation"],
        "tags": tags,
    }
    if format.hub_files is not None:
        files = [{"split": "train", "path": format.hub_files}]
        said["configs"] = [{"config_name": "default", "data_files": files}]
    return f"---\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}---"


def _summary(source: Source, listing: Listing, totals: Totals, marks: bool) -> str:
    people = f" of {len(listing.people):,} identities" if listing.people else ""
    count = f"**{totals.rows:,} pictures{people}.** "
    if source.made_by is None:
        return (
            f"{count}They were ingested, not generated: they may show real people, and nothing here marks them as "
            "synthetic. Marks that their files carried, such as IPTC's digital source type, were not read. Rights in "
            "the pictures, and the consent of whoever they show, are those of the data set that they came from."
        )
    how = (
        "a diffusion model made every one of them" if source.made_by == "model" else "a program drew every one of them"
    )
    if source.store.plan().kind == "edit":
        how = "each is an existing picture, edited by a diffusion model, and may show a person who exists"
    mark = (
        f"Every picture that the format holds says so itself: an XMP packet with IPTC `DigitalSourceType` "
        f"`{'trainedAlgorithmicMedia' if source.made_by == 'model' else 'algorithmicMedia'}` and its recipe as "
        f"JSON (in a PNG "
        "also as the text chunk `raygen`). Rows say `is_synthetic: true` where a format has rows."
        if marks
        else (
            "The pictures carry no marks, because the export was told to leave them out; please keep this card "
            "with them."
        )
    )
    return f"{count}They are synthetic: {how}. {mark}"


def _counts(listing: Listing, totals: Totals, source: Source) -> str:
    lines = [
        f"| pictures | {totals.rows:,} |",
        *(_people(listing, totals, source) if listing.people else ["| identities | rows name none |"]),
        f"| masks | {totals.masks:,} |",
        f"| files, bytes | {totals.files:,}, {totals.bytes:,} |",
        f"| rows left out because making them failed | {listing.failed:,} |",
    ]
    if listing.unselected:
        lines.append(f"| rows left out because the run's selection refused them | {listing.unselected:,} |")
    if listing.other_splits:
        lines.append(f"| rows left out because they belong to other splits | {listing.other_splits:,} |")
    if totals.bad:
        reasons = ", ".join(f"{name} {count}" for name, count in sorted(totals.reasons.items()))
        lines.append(f"| rows left out because they could not be exported | {totals.bad:,} ({reasons}) |")
    if listing.too_few:
        lines.append(f"| rows left out because their identity has too few pictures | {listing.too_few:,} |")
    if listing.people and listing.unlabelled:
        lines.append(f"| pictures without an identity | {listing.unlabelled:,} |")
    return "\n".join(["| | |", "|---|---|", *lines])


def _people(listing: Listing, totals: Totals, source: Source) -> list[str]:
    """Identities, and how many pictures each has."""
    each, planned = listing.each, source.planned_pictures
    before = ", those among them that could not be exported" if totals.bad else ""
    said = f"{each.min():,}, {np.median(each):g}, {each.max():,}{before}"
    lines = [f"| identities | {len(each):,} |", f"| pictures of an identity: fewest, median, most | {said} |"]
    if planned is not None:
        lines.append(f"| identities with fewer than the {planned:,} that were planned | {(each < planned).sum():,} |")
    return lines


def _making(source: Source, listing: Listing) -> str:
    plan = source.store.plan()
    lines = [f"| run | `{plan.run_id}` (`raygen {plan.kind}`) |", f"| digest of its rows | `{source.digest}` |"]
    for name, label in (("plan", "plan"), ("checkpoint", "model, sha256"), ("sampler", "sampler"), ("steps", "steps")):
        if listing.making.get(name):
            lines.append(f"| {label} | {', '.join(f'`{value}`' for value in listing.making[name])} |")
    for name in SETTINGS:
        value = source.settings.get(name)
        if value is not None and value != [] and not (name == "sampler" and not isinstance(value, Mapping)):
            lines.append(f"| {NAMES.get(name, name.replace('_', ' '))} | `{canonical(value).decode()}` |")
    if isinstance(source.plan_settings.get("planning"), Mapping):
        lines.append(f"| planned as | `{canonical(source.plan_settings['planning']).decode()}` |")
    lines += [f"| gate | {gate['description']} |" for gate in source.gates]
    if source.table == "faces" and isinstance(source.plan_settings.get("data"), Mapping):
        lines.append(f"| data set | `{source.plan_settings['data'].get('kind')}` |")
    made = "\n".join(["| | |", "|---|---|", *lines])
    if source.table != "samples":
        return made
    return (
        f"{made}\n\nThe noise of a picture depends on `noise_seed`, its `sample_id` and the attempt alone; the `seed` "
        "of a row is that of its plan."
    )


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return (
            "Nothing was measured for this export (`scores` names the folder of an evaluation). That says "
            "nothing about "
            "quality, in either direction."
        )
    head = "| metric | of | value (interval) | n | measured with |\n|---|---|---|---|---|"
    rows = [_score(row) for row in scores if "/" not in row["slice"]]
    more = "" if len(rows) <= MOST_SCORES else f"\n\n{len(rows) - MOST_SCORES} more stand in the evaluation."
    references = sorted({row["reference"][:SHORT] for row in scores if row["reference"]})
    against = f"\n\nCompared with reference rows of digest {', '.join(references)}." if references else ""
    note = (
        "\n\nNumbers compare only with others of the same network, n and protocol. `fid` is written for the "
        "2015 Inception "
        "network alone; `fd:<network>` is the same distance over another network's features."
    )
    return "\n".join([head, *rows[:MOST_SCORES]]) + more + against + note


def _score(row: Mapping[str, Any]) -> str:
    value = "none" if row["value"] is None else f"{row['value']:.4g}"
    if row["ci_low"] is not None and row["ci_high"] is not None:
        value += f" ({row['ci_low']:.4g}, {row['ci_high']:.4g})"
    protocol = json.loads(row["protocol"] or "{}")
    said = [str(protocol[name]) for name in ("network", "input", "level", "compare") if protocol.get(name)]
    if protocol.get("sha256"):
        said.insert(1, f"sha256 {str(protocol['sha256'])[:SHORT]}")
    if protocol.get("n_reference"):
        said.append(f"{protocol['n_reference']:,} reference rows")
    if protocol.get("fewer_rows_than_values"):
        said.append("**no more rows than values: most of the value may be bias**")
    elif protocol.get("low_n"):
        said.append("**few rows: the value is biased**")
    text = f"| {row['metric']} | {row['slice']} | {value} | {row['n']:,} | {', '.join(said)} |"
    return text.replace("\n", " ")


def _licences(config: CardConfig, source: Source, listing: Listing, scores: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"| model `{str(sha)[:SHORT]}` | made the pictures | {licence_of(str(sha), config.licences)} |"
        for sha in listing.making.get("checkpoint", ())
    ]
    if source.made_by == "model" and not lines:
        lines.append(f"| model of unknown digest | made the pictures | {licence_of('', {})} |")
    for network in source.plan_settings.get("judged_by") or ():
        lines.append(f"| {network} | judged what goes in | {licence_of(network, config.licences)} |")
    found: dict[str, str] = {}
    for row in scores:
        protocol = json.loads(row["protocol"] or "{}")
        if protocol.get("network"):
            found.setdefault(str(protocol["network"]), str(protocol.get("sha256", "")))
    for network, sha in sorted(found.items()):
        by_sha = any(sha.startswith(name) for name in config.licences) if sha else False
        lines.append(f"| {network} | measured them | {licence_of(sha if by_sha else network, config.licences)} |")
    own = (
        f"The data set itself: **{config.licence}**."
        if config.licence
        else "The data set itself: nobody named a licence yet, so there is none to rely on."
    )
    table = (
        "\n".join(["| network | what it did | licence |", "|---|---|---|", *lines]) if lines else "No network was used."
    )
    return (
        f"{own}\n\n{table}\n\nA licence of weights may reach to what they make, and so may that of their training data."
    )


def _use(source: Source) -> str:
    if source.made_by is None:
        return "Training and testing of what the original data set's terms allow, and nothing else."
    return (
        "Training and testing of face recognition, face parsing and attribute classifiers where labels have to "
        "be known and "
        "many pictures are needed, and research into how such sets differ from photographs. They are not meant "
        "as evidence of "
        "anybody's looks, for passing as photographs of people, nor as the only data that a system used on "
        "people is tested with."
    )


def _leaks(source: Source, scores: Sequence[Mapping[str, Any]]) -> str:
    """What was done about images that resemble real people."""
    said = ["A generated face can resemble a person whom the model was trained on."]
    refused = [gate["description"] for gate in source.gates if gate["refuses_real_people"]]
    said += refused or ["No gate refused such faces."]
    if refused and source.plan_settings.get("on_exhausted") == "best":
        said.append("Where no try passed all gates the best one may be here all the same.")
    measured = any(str(row["metric"]).partition(":")[0].partition("@")[0] in COPIED for row in scores)
    more = (
        "The scores above say how near the pictures are to training faces."
        if measured
        else ("An evaluation with `training` would measure it over the whole set, and none is named here.")
    )
    return " ".join([*said, more])


def _limits(source: Source, format: Export, scores: Sequence[Mapping[str, Any]]) -> str:
    limits = []
    if source.made_by == "model":
        limits += [
            (
                "A model repeats its training data's gaps: who is rare there is rare, or drawn worse, here. "
                "Nobody has balanced these "
                "pictures unless the plan says so."
            ),
            _leaks(source, scores),
            (
                "Labels are what was asked for, not what was found in the picture: identities, masks and "
                "attributes are conditions. "
                "The metrics above, where there are any, say how well they were met."
            ),
        ]
    if source.made_by == "program":
        limits.append("These are drawings. What is learnt from them alone says little about photographs.")
    if source.made_by is None:
        limits.append("Labels are those of the data set that the pictures came from; nobody checked them again.")
    if format.size is not None:
        limits.append(f"Pictures were brought to {format.size} px with a Lanczos filter, masks by the nearest place.")
    if format.pictures and format.codec == "jpeg":
        limits.append(f"JPEG of quality {format.quality} loses a little of what the run stores.")
    return "\n".join(f"- {limit}" for limit in limits)


def _again(source: Source, job: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(dict(job), sort_keys=False, allow_unicode=True)
    return (
        f"From run `{source.store.plan().run_id}` with raygen:\n\n```yaml\n{text}```\n\n"
        "The same rows in the same shards give the same files, on any number of workers and after any "
        "interruption, as long as the "
        "versions of raygen, Pillow and pyarrow are the same; each is recorded in the export's commits."
    )


#: sha256 of the bundled model, as `raygen.models.checkpoint.digest` takes it.
BUNDLED_MODEL: Final = "3521654bad3e046f2ec4c4bef91825119de7e0472faa076483ff131417c07c41"
_OWN: Final = "Apache-2.0, this project's own; trained on faces that a program drew, on no photograph"
UNKNOWN: Final = "unknown: the job names none; find out before passing pictures or numbers on"
#: By the beginning of the network's name.
_KNOWN: Final[Mapping[str, str]] = {
    BUNDLED_MODEL: _OWN,
    "raygen-parser": f"{_OWN} (the bundled parser; another one of its kind has the licence of whoever trained it)",
    "raygen-attributes": f"{_OWN} (the bundled classifier; another one has the licence of whoever trained it)",
    "raygen-identity": f"{_OWN} (the bundled embedder; another one of its kind has the licence of whoever trained it)",
    "parsenet": "published with CelebAMask-HQ, whose terms allow non-commercial research only",
    "bisenet": "code MIT (face-parsing.PyTorch); weights trained on CelebAMask-HQ, non-commercial research only",
    "inception-2015": "weights published by Google with TensorFlow (Apache-2.0); trained on ImageNet",
    "lpips": "code and linear weights BSD-2-Clause; its trunk (AlexNet or VGG-16) was trained on ImageNet",
}


def licence_of(network: str, said: Mapping[str, str]) -> str:
    """What the job says of `network` (its name, sha256, or how they begin), else what is known of it."""
    for table in (said, _KNOWN):
        for name in sorted(table, key=len, reverse=True):
            if network.startswith(name):
                return table[name]
    return UNKNOWN
