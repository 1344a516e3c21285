"""`python -m stagetrace`, and so `torchrun --nproc-per-node N -m stagetrace score TARGET --out DIR`."""

from stagetrace.cli.main import main

if __name__ == "__main__":
    main()
