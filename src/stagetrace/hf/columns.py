"""Which columns of a data set hold an example's text or features, and its label."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from stagetrace.errors import refuse
from stagetrace.hf.rows import is_sequence, present
from stagetrace.hf.task import Task
from stagetrace.hf.texts import COMPLETION, having, texts_of
from stagetrace.objectives.spans import POSITIONS as POSITIONS_OF_ANSWER
from stagetrace.stages.own_ids import COLUMN

TOKENISED, EMBEDDED, POSITIONS, MASK = "input_ids", "inputs_embeds", "position_ids", "attention_mask"

LABELS = ("labels", "label", "label_ids")
WORD_LABELS = (*LABELS, "tags", "ner_tags")

TARGETS = ("text", "sentence", "transcription", "transcript", "caption")
"""Columns with what is written of a sound or an image, where `label=` names none."""

UNLABELLED = (Task.MASKED, Task.CAUSAL)
"""Tasks whose labels are the text itself."""

PREDICTED = ("completion_mask", "assistant_masks")
"""Columns that are 0 at the tokens that a causal model did not learn to predict (TRL's)."""

OTHER_MASKS = ("loss_mask", "label_mask", "labels_mask", "prompt_mask", "loss_weights", "token_weights")
WEIGHTS = ("weight", "weights", "sample_weight", "example_weight", "loss_weight")
TOKENISED_ONLY = {
    Task.SPAN: "'start_positions' and 'end_positions'",
    Task.CHOICE: "a list of tokens for each choice, and the right one's place in 'label'",
}
"""Tasks whose texts are put together in many ways -> what a row must hold."""

LENGTHS = "seq_lengths"
"""The lengths of the documents that a row packs (TRL's)."""

KNOWN_BESIDE = frozenset({"special_tokens_mask", "word_ids", "offset_mapping", "token_type_ids", MASK, LENGTHS})


@final
@dataclass(frozen=True)
class Columns:
    """The columns of an example.

    texts: its texts; none where it has features (tokens, pixels, ...) already.
    label: its label, if it has one.
    predicted: columns that are 0 at tokens that are not predicted.
    main: the feature that an example cannot be without.
    """

    texts: tuple[str, ...]
    label: str | None
    predicted: tuple[str, ...] = ()
    main: str = TOKENISED

    @property
    def tokenised(self) -> bool:
        return not self.texts

    @property
    def completes(self) -> bool:
        """Whether the second text is predicted and the first is not."""
        return self.texts == COMPLETION


def columns_of(
    row: Mapping[str, Any],
    task: Task,
    text: str | Sequence[str] | None,
    label: str | None,
    where: str,
    *,
    main: str = TOKENISED,
    takes: Collection[str] = (),
    weighs: str | None = None,
    ids: str = COLUMN,
) -> tuple[Columns, tuple[str, ...]]:
    """The columns as named, else the known ones that the first row has; and what was decided and should be known.

    main: the feature that an example cannot be without. takes: what the model's `forward` takes. weighs: the column
    that weights are read from. ids: the column of the examples' ids.

    Raises:
        DescriptionError: a named column is missing, none is known, or several could be meant.
    """
    given = () if text is None else (text,) if isinstance(text, str) else tuple(text)
    for name in (*given, *(() if label is None else (label,))):
        if name not in row:
            refuse(f"{where}: there is no column '{name}'{having(row)}")
    if len(given) > 2:
        refuse(f"{where}: text= names one column, or two for pairs of texts, got {list(given)}")
    tokenised = not given and any(name in present(row) for name in (main, TOKENISED, EMBEDDED))
    if main != TOKENISED and not tokenised:
        refuse(
            f"{where}: the model reads '{main}', which no column holds{having(row)}; make it by the model's processor"
        )
    if task in TOKENISED_ONLY and not tokenised:
        refuse(
            f"{where}: {task.value} is read from tokenised rows{having(row)}; tokenise as in training into "
            f"'{TOKENISED}', with {TOKENISED_ONLY[task]}"
        )
    texts, passed = (given or (), ()) if given or tokenised else texts_of(_without(row, weighs), task, where)
    passed = tuple(name for name in passed if name != ids)
    notices = (
        [f"{where}: {_quoted(passed)} {_is(passed)} not read as text; text= names another choice"] if passed else []
    )
    written = task.writes and main != TOKENISED
    found, said = _label(row, task, label, tokenised, where, TARGETS if written else ())
    predicted = tuple(name for name in PREDICTED if name in present(row)) if task is Task.CAUSAL and tokenised else ()
    notices += said
    if tokenised:
        notices += _beside(row, task, {found, *predicted, *LABELS}, takes, where)
    unused = [name for name in WEIGHTS if name in row] if weighs is None else []
    if unused:
        notices.append(
            f'{where}: {_quoted(unused)} {_is(unused)} not used: every example weighs alike; weights="{unused[0]}" '
            "in hf.stage reads it"
        )
    return Columns(texts, found, predicted, main), tuple(notices)


def _label(
    row: Mapping[str, Any], task: Task, named: str | None, tokenised: bool, where: str, targets: tuple[str, ...] = ()
) -> tuple[str | None, list[str]]:
    """The column with the label; targets: names of texts that are one where no column is called a label."""
    if task in UNLABELLED:
        return _label_of_tokens(row, task, named, tokenised, where)
    if task is Task.SPAN:
        lacking = [name for name in POSITIONS_OF_ANSWER if name not in present(row)]
        if lacking:
            refuse(
                f"{where}: there is no column {' or '.join(map(repr, lacking))}{having(row)}; add the places of the "
                "answer's first and last token, as in training"
            )
        return None, []
    if named is not None:
        return named, []
    present_ = [name for name in (WORD_LABELS if task is Task.TOKENS else LABELS) if name in row]
    if task is Task.TOKENS and tokenised and "labels" in present_:
        return "labels", []  # labels of words may stand beside those of tokens
    present_ = present_ or [name for name in targets if name in row]
    others = [name for name in row if name.endswith(("_tags", "_labels")) and name not in present_]
    if task is Task.TOKENS and present_ and [name for name in others if is_sequence(row[name])]:
        present_ += others
    if len(present_) == 1:
        return present_[0], []
    if not present_ and task is Task.OTHER:
        return None, []
    bound = "several columns could hold the label" if present_ else "no column is known to hold the label"
    choices = " or ".join(f'label="{name}"' for name in (present_ or others)[:3])
    refuse(f"{where}: {bound}{having(row)}; name it by label={choices.removeprefix('label=')}")


def _label_of_tokens(
    row: Mapping[str, Any], task: Task, named: str | None, tokenised: bool, where: str
) -> tuple[str | None, list[str]]:
    """The labels of tokens; a label of another kind (a class) is not what was predicted, which is said."""
    names = LABELS if named is None else (named,)
    of_tokens = [name for name in names if name in row and is_sequence(row[name])]
    others = [name for name in names if name in present(row) and name not in of_tokens]
    if named is not None and not (of_tokens and tokenised):
        refuse(
            f"{where}: label='{named}' of a {task.value} language model must hold a label for each of the tokens in "
            f"'{TOKENISED}'; leave label= out to predict the text itself"
        )
    if of_tokens and not tokenised:
        refuse(
            f"{where}: column '{of_tokens[0]}' holds a label per token, but the tokens are only made here from the "
            f"text; tokenise into '{TOKENISED}' beside it, or remove the column"
        )
    if len(of_tokens) > 1:
        refuse(f"{where}: several columns could hold the label{having(row)}; name it by label=")
    said = [f"{where}: {_quoted(others)} {_is(others)} not used: what is predicted is the text"] if others else []
    return (of_tokens[0] if of_tokens else None), said


def _beside(
    row: Mapping[str, Any], task: Task, used: Collection[str | None], takes: Collection[str], where: str
) -> list[str]:
    """A notice of columns with a value per token that the model does not take; masks of the loss are refused."""
    masks = [name for name in OTHER_MASKS if name in present(row) and name not in takes]
    if masks and task.of_tokens:
        refuse(
            f"{where}: column '{masks[0]}' changes which tokens count, and is not read; put it into 'labels' (-100 "
            "where a token does not count), or remove it"
        )
    packs = [name for name in row if name.startswith("cu_seq_lens")]
    if packs and not {POSITIONS, LENGTHS} & set(present(row)):
        refuse(
            f"{where}: column '{packs[0]}' says that rows pack several documents, but only '{POSITIONS}' that start "
            "again at 0 keep them apart here; add that column"
        )
    tokens = row.get(TOKENISED)
    if not takes or not is_sequence(tokens):
        return []
    left_out = [
        name
        for name in present(row)
        if name not in takes and name not in used and name not in KNOWN_BESIDE
        if is_sequence(row[name]) and len(row[name]) == len(tokens) and not _of_strings(row[name])
    ]
    if not left_out:
        return []
    return [f"{where}: {_quoted(left_out)} {_is(left_out)} not used: the model does not take {_them(left_out)}"]


def _without(row: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def _of_strings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(one, str) for one in value)


def _quoted(names: Sequence[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} " + ", ".join(f"'{name}'" for name in names)


def _is(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _them(names: Sequence[str]) -> str:
    return "them" if len(names) > 1 else "it"
