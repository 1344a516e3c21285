"""Why did it say this? One answer of a model of `hf.stage`, traced back to the examples behind it, for people to read.

    from stagetrace import why

    print(why.ask(chain, prompt="The capital of France is"))                            # what the model itself says
    answer = why.ask(chain, prompt="The capital of France is", completion=" Lyon", out="runs/why")
    answer.page                                                                         # the same as a picture

- `ask(chain, prompt, completion, ...)`: of a causal language model, a masked one or a classifier.
- `Answer`: the question with each token's share of the loss, and of every stage the examples that spoke for and
  against the answer. Score below 0: more of the example makes the answer likelier.

On the command line: `stagetrace why TARGET --prompt "..."`.
"""

from stagetrace.why.answer import Answer, Example, Piece, StageAnswer
from stagetrace.why.ask import ask
from stagetrace.why.question import Question, Token

__all__ = ["Answer", "Example", "Piece", "Question", "StageAnswer", "Token", "ask"]
