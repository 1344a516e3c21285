"""From a page with marked blocks to the page with its tables."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from experiments.pages import comparisons, measures, reach, texts, weights, work
from experiments.pages.cells import NOT_RUN, Found, agreed, markdown, seeds_of, spread
from stagetrace.errors import refuse

BLOCK = re.compile(r"(<!-- table: ([^>]+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
CAPTIONS = {
    "agreement": "Predicted against true change of the query loss, with the line of equality; negative = it helps.",
    "groups": "Linear datamodelling score by the share of the pretraining examples in a group.",
    "scores": "Scores of the pretraining examples; positive = harmful.",
    "cifar10": "CIFAR-10: mistakes, and the pretraining images most harmful to each; score > 0 = harmful.",
    "mnist": "MNIST: mistakes, and the pretraining images most harmful to each; score > 0 = harmful.",
    "gains": "Change of accuracy in points; + = the accuracy rises.",
}
PAPER: dict[str, tuple[str, str]] = {
    "mnist-frozen": ("section 4.1, figure 2b", "Pearson r about 0.6 (in words)"),
    "cifar-frozen": ("section 4.1, figure 2a", "Pearson r about 0.6 (in words)"),
    "cifar-updated": ("section 4.1, figure 2c", "Pearson r 0.40"),
    "identity-ablation": ("section 4.1, figure 3", "Pearson r 0.17"),
    "resolve": ("not in the paper", "-"),
    "cleansing": ("section 4.2", "+0.28 points over random, one run"),
    "reweight": ("not in the paper", "-"),
    "similarity": ("section 4.3, figure 5", "0.055 for A, 0.025 for B"),
    "finetune-size": ("section 4.4, figure 6", '0.15 for D, "much less" than C'),
    "misclassified": ("section 4.1, figure 4", "judged by eye"),
    "language": ("section 4.5, table 1", "0.94 s a pretraining example"),
    "choices": ("not in the paper", "-"),
    "smoothness": ("not in the paper", "-"),
    "bert": ("not in the paper", "-"),
    "gpt": ("not in the paper", "-"),
    "minilm": ("not in the paper", "-"),
    "word-vectors": ("named, no experiment", "-"),
}
TABLES: dict[str, Callable[..., str]] = {
    table.__name__.replace("_", "-"): table
    for table in (
        *(comparisons.ours, comparisons.agreement, comparisons.spearman, comparisons.by_seed, comparisons.truths),
        *(comparisons.lds, comparisons.settings, work.training, work.stages, work.learned, work.solving, work.cost),
        *(texts.lines, texts.sentences, texts.texts, texts.sharing, measures.cleansed, measures.halves),
        *(measures.left_out, measures.sizes, measures.sizes_by_seed, measures.mistakes, measures.nature),
        *(measures.price, measures.larger, work.tracing_cost),
        *(weights.weight_gains, weights.weight_losses, weights.weight_sizes),
        *(reach.reached, reach.slopes, reach.beforehand, reach.assurances, reach.hybrids),
    )
}
"""Block -> what makes it."""


def headline(result: Found | None) -> str:
    """One line for the page of all experiments."""
    if result is None:
        return NOT_RUN.strip().rstrip(".").lower()
    if "paper" in result and "retraining" in result:
        found = next(comparisons.comparisons(result, "largest"))
        records = found.of(result.get("estimator") or next(iter(found.seeds[0]["estimators"])))
        return f"r {agreed(records, 'pearson_r', '.2f')}, largest, n = {records[0]['n']}, {seeds_of(records)}"
    if "gains" in result:
        found = {
            name: spread(next(iter(counts.values()))["held_out"]["others"], "+.4f")
            for name, counts in result["gains"].items()
        }
        return "; ".join(f"{name} {gain} nats in other orders" for name, gain in found.items())
    if "less_random" in result:
        found = result["less_random"]["harmful 10%"]["accuracy"]["measured"]
        return f"{spread(found, '+.2f')} points over random, {seeds_of(result['seeds'])}"
    if "what" in result:
        ratio = " over ".join(result["what"])
        return f"{ratio}: {spread(result['mean_absolute'][ratio])}, {seeds_of(result['seeds'])}"
    return "see the page"


def overview(results: Path) -> str:
    """A row an experiment."""
    rows = [[f"[{name}]({name}.md)", *words, headline(read(results, name))] for name, words in PAPER.items()]
    return markdown(["experiment", "in the paper", "paper", "ours (95 % over seeds)"], rows)


def read(results: Path, name: str) -> Found | None:
    path = results / name / "result.json"
    return json.loads(path.read_text()) if path.is_file() else None


def pictures(page: Path, results: Path) -> str:
    """The figures of the page's experiment, linked from where the page is."""
    made = ""
    for path in sorted((results / page.stem).glob("*.png")):
        link, words = os.path.relpath(path, page.parent).replace(os.sep, "/"), CAPTIONS.get(path.stem, path.stem)
        made += f"![{words}]({link})\n\n{words}\n\n"
    return made[:-1] or NOT_RUN


def filled(page: Path, results: Path) -> str:
    """The page with its blocks made anew."""

    def block(found: re.Match[str]) -> str:
        name, *words = found[2].split()
        if name == "overview":
            made = overview(results)
        elif name == "figures":
            made = pictures(page, results)
        elif name not in TABLES:
            refuse(f"{page.name}: there is no table '{name}'; there are: overview, figures, {', '.join(TABLES)}")
        else:
            result = read(results, page.stem)
            made = TABLES[name](result, *words) if result else NOT_RUN
        return f"{found[1]}\n{made}\n{found[4]}"

    text = page.read_text()
    if len(BLOCK.findall(text)) != text.count("<!-- table:"):
        refuse(f"{page.name}: a block '<!-- table: ... -->' without its '<!-- end -->'")
    return BLOCK.sub(block, text)


def stale(docs: Path, results: Path) -> dict[Path, str]:
    """The pages whose tables are not those of the results -> what they should be."""
    made = {page: filled(page, results) for page in sorted(docs.glob("*.md"))}
    return {page: text for page, text in made.items() if text != page.read_text()}
