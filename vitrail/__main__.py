"""`python -m vitrail` is `vitrail`: what torchrun starts."""

from vitrail.cli import main

if __name__ == "__main__":
    main()
