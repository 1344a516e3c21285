"""The tables of `choices`: every setting against the same truth."""

from experiments.pages.cells import NOT_RUN, Found, markdown


def settings_compared(result: Found, part: str) -> str:
    """A table for each truth of a part: a row a setting, for each choice of examples r, Spearman and slope."""
    found = result["tables"].get(part)
    if not found:
        return NOT_RUN
    made: list[str] = []
    for title, choices in found.items():
        head = [f"{title}: setting", *(f"{choice}: r / Spearman / slope" for choice in choices)]
        settings = next(iter(choices.values()))
        rows = [[name, *(_cell(choices[choice][name]) for choice in choices)] for name in settings]
        made.append(markdown(head, rows))
    return "\n".join(made)


def _cell(figures: Found) -> str:
    return " / ".join(f"{figures[name]:.2f}" for name in ("pearson_r", "spearman_r", "slope"))
