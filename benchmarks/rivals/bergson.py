"""bergson 0.26.1: not run. It wants a PyTorch before 2.10, and its front ends read Hugging Face models and text."""

from benchmarks.rivals.given import Given
from benchmarks.rivals.process import Found, LeftOut, Spent, command


def gradients(given: Given, spent: Spent) -> Found:
    """Not run."""
    del given, spent
    raise LeftOut("its front ends read Hugging Face models and text data sets, not this network")


if __name__ == "__main__":
    command("bergson", {"gradients": gradients})
