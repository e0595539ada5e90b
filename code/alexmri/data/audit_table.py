"""Print the findings of an audit as tables on the terminal."""

from collections.abc import Mapping
from typing import Any

# So many findings of a kind are printed; the JSON file and the page have more.
SHOWN = 10


def show_audit(found: Mapping[str, Any]) -> None:
    """Print counts, findings and, last, the verdict."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    counts = found["counts"]
    table = Table("class", *counts, "picture sizes", title="images")
    for label, sizes in found["sizes"].items():
        shown = ", ".join(f"{size} ({count})" for size, count in list(sizes.items())[:3])
        more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
        numbers = (str(split[label]) for split in counts.values())
        table.add_row(escape(label), *numbers, shown + more)
    console.print(table)
    findings = [
        *((name, reason, "") for name, reason in found["skipped_images"].items()),
        *(
            (" = ".join(pair["paths"][:3]), f"equal {pair['kind']}", _where(pair))
            for pair in found["exact_duplicates"]
        ),
        *(
            (" = ".join(pair["paths"]), f"{pair['kind']}: {pair['how']}", _where(pair))
            for pair in found["near_duplicates"]
        ),
        *(
            (
                ", ".join(person["paths"][:3]),
                f"most of this person, {len(person['belong_to'])} images, stand elsewhere",
                ", ".join(f"{name} {count}" for name, count in person["classes"].items()),
            )
            for person in found["misfiled"]
        ),
    ]
    if findings:
        table = Table("images", "finding", "where", title="findings", show_lines=True)
        for row in findings[:SHOWN]:
            table.add_row(*map(escape, row))
        console.print(table)
    if len(findings) > SHOWN:
        console.print(f"and {len(findings) - SHOWN} more: see --json and --html")
    for sentence in found["verdict"]:
        console.print(sentence, markup=False, soft_wrap=True)
    console.print("Research software, not a diagnostic device.")


def _where(pair: Mapping[str, Any]) -> str:
    return f"{', '.join(pair['classes'])}; {', '.join(pair['splits'])}"
