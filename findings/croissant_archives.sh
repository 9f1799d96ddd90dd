#!/usr/bin/env bash
# mlcroissant and two data sets on disk that both keep their pictures in an archive of the same name.
#
# One would guess: a Croissant file names its archive relative to itself, with its SHA-256, so a data set loads its own
# pictures wherever it lies.
# What happens: the archive is extracted into a cache by its `contentUrl` alone. The second data set whose archive is also
# called images.tar finds a folder of that name and gives the pictures of the first one. The right SHA-256 stands in the
# file of each.
# Why it matters: nothing fails and nothing warns. Two versions of a data set, or two sets of one exporter, are compared
# or trained on as if they were different, and hold the same pictures. A cache folder for each set
# (CROISSANT_CACHE, read when the package is imported) keeps them apart.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "mlcroissant==1.1.1" "pillow>=11" "numpy>=2" "pandas>=2"
cat > "$folder/read.py" <<'PYTHON'
import sys

import mlcroissant

dataset = mlcroissant.Dataset(f"{sys.argv[1]}/croissant.json")
for record in dataset.records("pictures"):
    print(record["pictures/pixels"].convert("RGB").getpixel((0, 0)))
PYTHON
cat > "$folder/make.py" <<'PYTHON'
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

from PIL import Image

for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
    place = Path(sys.argv[1]) / name
    place.mkdir()
    data = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(data, "PNG")
    with tarfile.open(place / "images.tar", "w") as archive:
        member = tarfile.TarInfo("one.png")
        member.size = len(data.getvalue())
        archive.addfile(member, io.BytesIO(data.getvalue()))
    document = {
        "@context": {
            "@language": "en",
            "@vocab": "https://schema.org/",
            "cr": "http://mlcommons.org/croissant/",
            "sc": "https://schema.org/",
            "dct": "http://purl.org/dc/terms/",
            "conformsTo": "dct:conformsTo",
            "containedIn": {"@id": "cr:containedIn", "@type": "@id"},
            "data": {"@id": "cr:data", "@type": "@json"},
            "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
            "extract": "cr:extract",
            "field": "cr:field",
            "fileObject": "cr:fileObject",
            "fileProperty": "cr:fileProperty",
            "fileSet": "cr:fileSet",
            "includes": "cr:includes",
            "recordSet": "cr:recordSet",
            "source": "cr:source",
        },
        "@type": "sc:Dataset",
        "name": name,
        "description": f"one {name} picture",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "license": "https://creativecommons.org/publicdomain/zero/1.0/",
        "url": f"https://example.org/{name}",
        "version": "1.0.0",
        "datePublished": "2026-01-01",
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "archive",
                "name": "archive",
                "contentUrl": "images.tar",
                "encodingFormat": "application/x-tar",
                "sha256": hashlib.sha256((place / "images.tar").read_bytes()).hexdigest(),
            },
            {
                "@type": "cr:FileSet",
                "@id": "files",
                "name": "files",
                "containedIn": {"@id": "archive"},
                "encodingFormat": "image/png",
                "includes": "*.png",
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "pictures",
                "name": "pictures",
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": "pictures/pixels",
                        "name": "pixels",
                        "dataType": "sc:ImageObject",
                        "source": {"fileSet": {"@id": "files"}, "extract": {"fileProperty": "content"}},
                    }
                ],
            }
        ],
    }
    (place / "croissant.json").write_text(json.dumps(document, indent=2))
PYTHON
python="$folder/venv/bin/python"
"$python" -c 'import importlib.metadata as m; print("mlcroissant", m.version("mlcroissant"))'
"$python" "$folder/make.py" "$folder"
look() { CROISSANT_CACHE="$1" "$python" "$folder/read.py" "$folder/$2" 2>/dev/null; }
first=$(look "$folder/cache" red)
second=$(look "$folder/cache" blue)
apart=$(look "$folder/another" blue)
echo "the red set:                       $first"
echo "then the blue set, the same cache: $second"
echo "the blue set, a cache of its own:  $apart"
[ "$first" = "(255, 0, 0)" ] && [ "$apart" = "(0, 0, 255)" ] || { echo "a set does not load its own picture"; exit 1; }
[ "$second" = "$first" ] || { echo "the behaviour changed: the second set is its own"; exit 1; }
