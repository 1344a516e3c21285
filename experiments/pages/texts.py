"""The tables of texts: the ends of a ranking in words, for `language`, `word-vectors`, `bert` and `gpt`."""

from collections.abc import Mapping
from typing import Any

from experiments.pages.cells import NOT_RUN, Found, cells, markdown
from experiments.texts import without_names

MEAN = "mean test loss"
LONGEST = 240
"""Characters of a text in a table."""
ENDS = ("most_harmful", "most_helpful")


def lines(result: Found, size: str) -> str:
    """Of `word-vectors`: the lines at both ends of the ranking for each query."""
    text = ""
    for entry in result["lines"].get(size, []):
        label = f" (label: {_label(entry['label'])})" if "label" in entry else ""
        text += (
            f"Query: {quoted(entry['query'])}{label}; mean absolute score {entry['mean_absolute_score']:.2g} nats.\n\n"
        )
        rows = [
            [_words(end), row["row"], f"{row['score']:+.3g}", quoted(row["text"])] for end in ENDS for row in entry[end]
        ]
        text += markdown(["end", "row", "score, nats", "line"], rows) + "\n"
    return text.rstrip("\n") + "\n" if text else NOT_RUN


def sentences(result: Found) -> str:
    """Of `language`, as in the paper's table 1: the sentences of largest and smallest absolute score for each tweet."""
    found, text = result["small"]["sentences"], ""
    for tweet in found["tweets"]:
        verdict = "right" if tweet["said"] == tweet["label"] else "wrong"
        text += (
            f"> {quoted(tweet['text'])}\n\nRow {tweet['row']} of the test tweets; {verdict}: probability of its label "
            f"{tweet['probability_of_its_label']:.2f}. Mean absolute score of {found['sampled']:,} sampled sentences: "
            f"{tweet['mean_absolute_score']:.1e}; {100 * tweet['share_harmful']:.0f} % of them are harmful.\n\n"
        )
        ends = ("largest", "smallest")
        rows = [
            [f"{end} absolute score", f"{row['score']:+.1e}", quoted(row["text"])] for end in ends for row in tweet[end]
        ]
        text += markdown(["", "score, nats (+ = harmful)", "sentence"], rows) + "\n"
    return text.rstrip("\n") + "\n"


def texts(result: Found, chain: str, query: str = "mean") -> str:
    """Of `bert` and `gpt`: the ends of the ranking of every stage of a chain, for the mean or the chosen tweets."""
    found = result["chains"].get(chain)
    if found is None:
        return NOT_RUN
    if query == "mean":
        return _by_stage(found["texts"][MEAN], 4)
    made = ""
    for words, tweet in found["asked"].items():
        facts = f"label {_label(tweet['label'])}, probability of it {tweet['probability_of_the_label']:.2f}"
        made += f"**{words}** ({facts}): {quoted(tweet['text'])}\n\n" + _by_stage(found["texts"][words], 2) + "\n"
    return made.rstrip("\n") + "\n"


def sharing(result: Found) -> str:
    """What `hf.shared` printed of each link of the chains."""
    text = ""
    for name, chain in result["chains"].items():
        text += f"**{name}**: {' -> '.join(chain['stages'])}\n\n"
        for stage, shown in chain["shared"].items():
            alpha = cells(chain["alpha"], {stage: ", alpha {:g}"})[0] or ""
            printed = "\n".join(line.rstrip() for line in shown.splitlines())
            text += f"`{stage}`, {chain['links'][stage]}{alpha}:\n\n```text\n{printed}\n```\n\n"
    return text.rstrip("\n") + "\n"


def quoted(text: str) -> str:
    """As a cell shows it, to the letter: one line, neither a column's end, nor mark-up, nor a name or an address."""
    line = without_names(" ".join(text.split()))
    line = line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."
    return "`` " + line.replace("|", "\\|").replace("``", "` `") + " ``"


def _by_stage(stages: Mapping[str, Any], count: int) -> str:
    rows = [
        [
            *(stage, _words(end), f"{each['score']:+.2e}", f"{each['removal_effect']:+.1e}"),
            *(_label(each["label"]) if stage == "finetune" else None, quoted(each["text"])),
        ]
        for stage, ends in stages.items()
        for end in ENDS
        for each in ends[end][:count]
    ]
    head = ["stage", "", "score (nats; + = harmful)", "effect of removal (nats; - = it helps)", "label", "text"]
    return markdown(head, rows)


def _label(label: int | None) -> str:
    return "-" if label is None else ("negative", "positive")[label]


def _words(end: str) -> str:
    return end.replace("_", " ")
