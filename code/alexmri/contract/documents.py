"""Read the JSON documents a platform leaves for a job."""

import json
from pathlib import Path
from typing import Any

from alexmri.errors import UserError


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file of the platform, or None where there is no such file.

    Raises:
        UserError: not readable, or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold one JSON object, not {type(content).__name__}")
    return content
