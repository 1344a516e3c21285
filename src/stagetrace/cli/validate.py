"""`stagetrace validate`: do the scores predict what retraining does?"""

from stagetrace.cli import options

__all__ = ["validate"]


def validate(
    target: options.Target,
    out: options.Out,
    stage: options.Stage = None,
    largest: options.Largest = 50,
    random: options.Random = 50,
    by: options.By = [],  # noqa: B006
    groups: options.Groups = [],  # noqa: B006
    group_count: options.GroupCount = 50,
    retrain: options.Retrain = [],  # noqa: B006
    seeds: options.Seeds = 3,
    processes: options.Processes = None,
    together: options.Together = 8,
    solve: options.Solve = [],  # noqa: B006
    tokens: options.Tokens = False,
    embedding: options.Embedding = None,
    text: options.Text = None,
    seed: options.Seed = 0,
    debug: options.Debug = False,
) -> None:
    """Retrain without chosen examples, and compare with what the scores and simpler controls predicted."""
    del debug

    from stagetrace.cli import controls, fits, settings, show
    from stagetrace.cli.removals import check_alone, check_counts, recorded_settings, removals
    from stagetrace.cli.target import load
    from stagetrace.progress import Bars
    from stagetrace.results.lock import refuse_in_use
    from stagetrace.terminal import terminal
    from stagetrace.validation import validate as compare
    from stagetrace.validation.report import save

    check_alone()
    typed = settings.SolveOptions(solve)
    refuse_in_use(out)  # before the target's models are loaded
    job = load(target)
    chain, query = job.chain, job.query
    stage = stage or chain.names[0]
    chain.check_names([stage], "--stage")
    fitted = fits.fits(chain, stage, retrain, job.options.get("fit"))
    chosen = removals(largest, random, groups, group_count, by, fitted, seed)
    if not tokens:  # of which there are more
        check_counts({"--largest": largest, "--random": random}, len(chain[stage].stage.examples), stage)
    found, asked = controls.estimators(chain, typed, job.options, embedding, text, seed)
    runs = range(seeds if any(fit.is_stochastic for fit in fitted.values()) else 1)
    progress = Bars()

    def say(line: str) -> None:
        progress.console.print(line, highlight=False, soft_wrap=True)

    described_fits = fits.describe(chain, fitted)
    for name, how in described_fits.items():
        say(f"stage '{name}' is retrained by {how}")
    predicted, left_out = controls.predicted(found, asked, (chain, query, stage), progress, say, tokens=tokens)
    validation = compare(
        chain,
        query,
        fit=fitted,
        stage=stage,
        choices=chosen,
        estimators=predicted,
        seeds=runs,
        processes=processes,
        together=together,
        tokens=tokens,
        out=out,
        progress=progress,
    )
    recorded = {
        "target": target,
        "seeds": list(runs),
        "together": together,
        "tokens": tokens,
        **recorded_settings(job, typed, fitted, chosen),
    }
    files = save(validation, out, settings=recorded, left_out=left_out)
    show.validation(validation, described_fits, left_out, terminal(), files)
