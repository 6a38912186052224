"""The TFDS builder of the public sets.

Rows come from `manual_dir` (a file or folder called after the set, see
`catalogue.local_file`), and where there is none from the public source. Nothing is
redistributed here: whoever downloads a set takes it under its own licence.

Another number of rows than catalogue.py has is an error. Another checksum of the
parsed rows is a line on stderr; the checksum is kept in the prepared set's metadata.
"""

import json
import pathlib
import socket
import sys
import urllib.parse
import urllib.request

import numpy as np
import tensorflow_datasets as tfds

from limr_jax.data.datasets import normalise
from limr_jax.data.datasets.catalogue import (
    FACTS,
    digest,
    file_digest,
    local_file,
    read_local,
)
from limr_jax.errors import InputError


class PublicBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The builder of one row of the table; a set's package names the set."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put <set>.jsonl, <set>_<split>.jsonl or a folder <set>/ here."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        facts = FACTS[self.name]
        return self.dataset_info_from_configs(
            description=facts.about,
            license=facts.licence,
            features=tfds.features.FeaturesDict(
                {
                    "id": text,
                    "problem": text,
                    "answer": text,
                    "verifiable": tfds.features.Scalar(dtype=np.bool_),
                    "columns": text,  # all else, a JSON object
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the source's order is the set's order
        )

    def _split_generators(self, dl_manager):
        try:
            manual_dir = pathlib.Path(dl_manager.manual_dir)
        except AssertionError:  # There is no such folder, or nothing in it.
            manual_dir = None
        splits = {}
        for split, facts in FACTS[self.name].splits.items():
            file = manual_dir and local_file(manual_dir, self.name, split)
            if file:
                parsed = read_local(file, self.name, split)
            else:
                parsed = _download(dl_manager, self.name, split)
            _check(parsed, self.name, split, downloaded=not file)
            self.info.metadata[split] = {
                "source": [str(file)] if file else [url for url, _ in facts.sources],
                "sha256": digest(parsed),
                # `changed_source` compares bytes: quick, and no row need be parsed.
                "file_sha256": file_digest(file) if file else None,
            }
            splits[split] = self._generate_examples(parsed)
        return splits

    def changed_source(self, manual_dir: pathlib.Path) -> pathlib.Path | None:
        """A local file of this set that is not what it was prepared from, or None."""
        for split, known in self.info.metadata.items():
            file = local_file(manual_dir, self.name, split)
            # A file that came after a download differs as well, from None.
            if file and file_digest(file) != known["file_sha256"]:
                return file
        return None

    def _generate_examples(self, parsed):
        for index, row in enumerate(parsed):
            # As one text: TFDS wants the same fields of all sets, and sources differ.
            yield index, row | {"columns": json.dumps(row["columns"])}


def _download(dl_manager, name: str, split: str) -> list[dict]:
    parsed, counts = [], {}
    for url, prefix in FACTS[name].splits[split].sources:
        address, _, folder = url.partition("#")
        try:
            _reach(address)
            path = pathlib.Path(dl_manager.download(address))
        except Exception as error:  # requests' and TFDS's share no base.
            raise InputError(
                f"{name}:{split} cannot be downloaded from {url} "
                f"({' '.join(str(error).split())[:200]}); put {name}_{split}.jsonl "
                "into the folder for local data (manual_dir)"
            ) from None
        suffix = pathlib.PurePosixPath(address).suffix
        rows = (
            normalise.read_zip(path, folder) if folder else normalise.read(path, suffix)
        )
        for where, row in rows:
            # Rows without an id are numbered on through all files of one prefix.
            index = counts.get(prefix, 0)
            counts[prefix] = index + 1
            parsed.append(normalise.normalise(row, where, prefix=prefix, index=index))
    return parsed


def _reach(address: str) -> None:
    """OSError at once where there is no network; TFDS would try for minutes."""
    if urllib.request.getproxies():
        return  # Only the proxy can be reached.
    parts = urllib.parse.urlsplit(address)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    socket.create_connection((parts.hostname, port), timeout=20).close()


def _check(parsed: list[dict], name: str, split: str, downloaded: bool) -> None:
    """Row count and checksum against the table."""
    known = FACTS[name].splits[split]
    # A local copy may be a part of the set; a download that is one is broken.
    if downloaded and known.rows not in (None, len(parsed)):
        raise InputError(
            f"{name}:{split}: the source has {len(parsed)} rows instead of "
            f"{known.rows}; check {known.sources[0][0]}, and put a good copy into "
            "the folder for local data (manual_dir)"
        )
    sha256 = digest(parsed)
    if known.sha256 not in (None, sha256):
        print(
            f"{name}:{split}: rows differ from those recorded (sha256 {sha256[:12]}, "
            f"recorded {known.sha256[:12]})",
            file=sys.stderr,
        )
