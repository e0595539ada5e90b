"""Find the class of people without dementia, by the setting or by its name."""

import re
from collections.abc import Sequence

from alexmri.errors import UserError

# What is left of a folder's name in small letters, without digits, blanks and signs.
_HEALTHY = re.compile(
    r"non.*|not?dement(ed|ia)|no(impairment|disease|alzheimers?(disease)?|ad)"
    r"|(cognitive(ly)?)?(normals?|unimpaired)(controls?|cognition)?|cn|nc|hc"
    r"|healthy.*|controls?(group|subjects?)?"
)


def find_negative_class(classes: Sequence[str], wanted: str | None) -> str | None:
    """Return the class of healthy people: `wanted`, else the one whose name says so, else None.

    Non*, No Impairment, Normal, CN, Healthy and Control are such names. Where two classes have
    one, none is chosen.

    Raises:
        UserError: `wanted` is no class.
    """
    if wanted is not None:
        if wanted not in classes:
            raise UserError(
                f"negative_class is '{wanted}', which is no class folder; the classes are"
                f" {', '.join(classes)}"
            )
        return wanted
    found = [name for name in classes if _HEALTHY.fullmatch(re.sub("[^a-z]", "", name.lower()))]
    return found[0] if len(found) == 1 else None
