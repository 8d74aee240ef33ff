"""`python -m spiritsafe` is the `spiritsafe` command."""

from spiritsafe.cli import main

if __name__ == "__main__":
    main()
