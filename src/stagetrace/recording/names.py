"""Names of parameters, whatever is wrapped around the model."""

_PREFIXES = ("module.", "_orig_mod.")
"""What data parallelism and compilation put before a name."""


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers put before it.

    Example:
        >>> plain_name("module._orig_mod.head.weight")
        'head.weight'
    """
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name
