"""Model names: a folder, or a name on the Hugging Face hub that is probed once before anything is loaded.

Without the probe, transformers and diffusers try each of their files in turn, and each again and again, for
minutes where the network is down or the name is mistyped.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from talkforge.schemas.errors import ModelError, one_line

PROBE_TIMEOUT_S = 10.0
"""The hub has this long to answer the probe, s."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_local(name: str, file: str, what: str, known: str = "") -> bool:
    """Whether a model is to be loaded from the disk alone; libraries take it as `local_files_only`.

    A folder is never looked for on the hub. A hub name is loaded from the hub's cache on this disk where
    the hub cannot be reached or does not have it.

    Args:
        name: folder or hub name, as the user wrote it.
        file: path of a file of the model, which shows whether the model is in the cache.
        what: what messages call the model, such as "captioner".
        known: other names that would be understood, for messages.

    Raises:
        ModelError: it is neither a folder nor a hub name, or the hub and its cache do not have it.
    """
    if name and Path(name).is_dir():
        return True
    if not _HUB_NAME.fullmatch(name):
        expected = f"{known}, a folder" if known else "a folder"
        raise ModelError(f"{what} {name}: expected {expected} that exists, or a hub name such as owner/name")
    problem = _probe(name)
    if not problem:
        return False
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, file), str):
        return True
    raise ModelError(f"{what} {name}: no such folder here, and {problem}")


@functools.cache
def _probe(name: str) -> str:
    """Why the hub does not give a model; empty where it does. One request for each name and process."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(name, timeout=PROBE_TIMEOUT_S)
    except HfHubHTTPError as error:
        status = error.response.status_code
        found = {401: "no such public model there", 403: "it may not be read", 404: "no such model there"}
        return f"the hub answers {status} ({found.get(status, one_line(error, 100))})"
    except Exception as error:  # each kind of failing network has exceptions of its own
        return f"the hub cannot be reached ({one_line(error, 100)})"
    return ""
