"""The sign and the unit, in words: the one place that every table, file and page takes them from."""

UNIT = "query loss"

SIGN = (
    "score > 0 is harmful: more weight on the example raises the query loss; "
    "removal_effect = -score / n_examples is the predicted change of the query loss if the example is removed: "
    "negative = removing it helps"
)

SCORE_HEADING = f"score (+ harmful, {UNIT})"
REMOVAL_HEADING = f"effect of removal ({UNIT}; - helps)"
