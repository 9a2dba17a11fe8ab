"""Content credentials (C2PA) of a file: what its maker reserves, by the assertion `training-mining` of CAWG.

Read offline: manifests that lie at an address are not fetched, and no certificate is looked up. Nor is the
signature checked, because a reservation binds whoever signed it, and a permission opens nothing here.

Source: CAWG Training and Data Mining Assertion 1.1; C2PA 1.4, whose labels begin with `c2pa.`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from talkforge.schemas.errors import RunError, one_line

LABELS = ("cawg.training-mining", "c2pa.training-mining")
USES = ("ai_generative_training", "ai_inference", "ai_training", "data_mining")
ANSWERS = ("allowed", "constrained", "notAllowed")
"""From the loosest to the strictest."""

REMOTE, UNREADABLE, UNREAD = "remote", "unreadable", "unread"
"""Stand where the file names credentials that lie elsewhere, where those in it cannot be read, and where
nobody has looked."""

_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_reading": False}}


def training_mining(path: Path) -> str:
    """What the credentials of a file say of training and data mining.

    Args:
        path: of a local file. The package c2pa must be installed.

    Returns:
        `<use>=<answer>` for each of `USES` that is named, in alphabetical order, separated by blanks; empty
        where there are no credentials or they say nothing; or `remote`, or `unreadable`.

    Raises:
        RunError: the package cannot be loaded on this machine.
    """
    try:
        import c2pa
    except (ImportError, OSError) as error:
        raise RunError(f"the package c2pa cannot be loaded: {one_line(error)}") from None

    try:
        reader = c2pa.Reader.try_create(str(path), context=_offline())
        if reader is None:
            return ""
        with reader:
            return stated(json.loads(reader.json()))
    except c2pa.C2paError.NotSupported:  # a container that cannot hold credentials
        return ""
    except c2pa.C2paError as error:
        return REMOTE if str(error).startswith("Remote") else UNREADABLE
    except ValueError:
        return UNREADABLE


def stated(store: Mapping[str, Any]) -> str:
    """The same of a manifest store.

    The newest manifest counts where it says anything; else whatever those say that it was made from.

    Args:
        store: as c2pa's reader gives it: `active_manifest`, and `manifests` by their names.
    """
    manifests = store.get("manifests") or {}
    newest = manifests.get(store.get("active_manifest") or "", {})
    return _strictest([newest]) or _strictest(manifests.values())


def _strictest(manifests: Iterable[Mapping[str, Any]]) -> str:
    found: dict[str, int] = {}
    for manifest in manifests:
        for assertion in manifest.get("assertions") or ():
            label, data = assertion.get("label", ""), assertion.get("data")
            if label.partition("__")[0] not in LABELS or not isinstance(data, dict):
                continue
            entries = data.get("entries", data)  # the schema of version 1.0 left `entries` out
            for name, entry in entries.items() if isinstance(entries, dict) else ():
                use, answer = name.partition(".")[2], entry.get("use") if isinstance(entry, dict) else entry
                if use in USES:
                    rank = ANSWERS.index(answer) if answer in ANSWERS else len(ANSWERS) - 1
                    found[use] = max(rank, found.get(use, 0))
    return " ".join(f"{use}={ANSWERS[rank]}" for use, rank in sorted(found.items()))


@functools.cache
def _offline() -> Any:
    import c2pa

    return c2pa.Context.from_dict(_OFFLINE)
