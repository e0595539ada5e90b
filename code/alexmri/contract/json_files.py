"""Read the JSON documents a platform leaves for a job."""

import json
from pathlib import Path
from typing import Any

from alexmri.errors import UserError


def read_json_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file of the platform, or None where there is no such file.

    A byte order mark, which editors on Windows leave, is passed over.

    Raises:
        UserError: not readable, or not a JSON object, or with text that is no Unicode, or with a
            key that comes twice.
    """
    try:
        content = json.loads(
            path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_duplicate_keys
        )
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is in no encoding
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is not valid JSON: it is nested too deeply") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold one JSON object, not {type(content).__name__}")
    return content


def _without_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in content if names.count(name) > 1)
        raise ValueError(f"it has the key {twin!r} twice; keep one")
    return content
